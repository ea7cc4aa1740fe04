"""What the real W&B client writes of a private fit, record by record: what `wandb sync` would send."""

import os
import socket
import sys
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from test_outgoing import end_wandb, run

from lightning_dp.tracking.run_folder import Run
from lightning_dp.tracking.wandb_config import outgoing_config
from lightning_dp.tracking.wandb_dry import described, records
from lightning_dp.tracking.wandb_logger import (
    DiscreetWandbLogger,
    finish_wandb,
    make_wandb_logger,
    wandb_mode,
)

SECRETS = (
    "/data/hôpital/readings.csv",
    "diagnosis",
    "hiv",
    "flu",
    "customer-7",
    "/data/owner/ledger.sqlite",
)
CONFIG = {
    "seed_everything": 3,
    "data": {
        "class_path": "lightning_dp.timeseries.Table",
        "init_args": {
            "path": SECRETS[0],
            "horizon": 24,
            "unit": "user",
            "layout": {
                "class_path": "lightning_dp.timeseries.Wide",
                "init_args": {
                    "time_column": "time",
                    "id_columns": ["customer-7", "customer-8"],
                    "covariates": {
                        "categorical": {"diagnosis": ["flu", "hiv"]},
                        "numeric": {"diagnosis": [0, 1]},
                    },
                },
            },
        },
    },
    "model": {
        "init_args": {"net": {"init_args": {"hidden_size": 8, "weights": "/data/hôpital/readings.csv"}}}
    },
    "privacy": {"target_epsilon": 8.0, "ledger": "/data/owner/ledger.sqlite"},
    "run": {"dir": "runs/somebody", "method": "dp-aware"},
}


def test_the_configuration_goes_without_paths_columns_categories_and_customers():
    sent = outgoing_config(CONFIG)
    text = str(sent)
    assert all(secret in str(CONFIG) for secret in SECRETS)
    assert not [secret for secret in (*SECRETS, "customer-8", "runs/somebody") if secret in text]
    assert sent["data"]["class_path"] == "lightning_dp.timeseries.Table"
    assert sent["data"]["init_args"]["horizon"] == 24
    assert sent["data"]["init_args"]["unit"] == "user"
    assert sent["privacy"]["target_epsilon"] == 8.0
    assert sent["run"]["method"] == "dp-aware"
    assert sent["model"]["init_args"]["net"]["init_args"]["hidden_size"] == 8


@pytest.mark.parametrize(
    ("asked", "variables", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k" * 40}, "offline"),  # a key is no wish to send
        ("auto", {"WANDB_MODE": "online", "WANDB_API_KEY": "k" * 40}, "offline"),
        ("auto", {"WANDB_SWEEP_ID": "s"}, "online"),  # an agent is
        ("auto", {"WANDB_SWEEP_ID": "s", "WANDB_MODE": "offline"}, "offline"),
        ("online", {}, "online"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("disabled", {"WANDB_SWEEP_ID": "s"}, "disabled"),
        ("dry", {"WANDB_MODE": "online"}, "dry"),
        ("online", {"WANDB_MODE": "something new"}, "online"),
    ],
)
def test_the_more_private_wish_wins(monkeypatch, asked, variables, mode):
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == mode


def told(folder: Path) -> tuple[list[float], bytes]:
    """The times of the history's rows, and all that is in the file."""
    (path,) = folder.rglob("*.wandb")
    times = []
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind in ("history", "partial_history"):
            items = getattr(record, kind).item
            times += [float(one.value_json) for one in items if "_timestamp" in (one.key, *one.nested_key)]
    return times, path.read_bytes()


def test_times_of_steps_and_the_machine_stay_here(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["somewhere/secret-program.py", "--data=secret-data"])
    logger = DiscreetWandbLogger(offline=True, save_dir=tmp_path / "ours", project="own")
    run(tmp_path, logger, test=True)
    times, content = told(tmp_path / "ours")
    assert len(times) > 3
    assert len(set(times)) == 1
    assert times[0] % 3600 == 0
    private = (socket.gethostname(), "secret-program", "secret-data", os.getcwd(), sys.executable)
    assert not [name for name in private if name.encode() in content]
    assert not list(tmp_path.glob("ours/**/wandb-metadata.json")) + list(
        tmp_path.glob("ours/**/require*.txt")
    )


def test_a_logger_of_its_own_tells_when_each_step_was(tmp_path):
    """The fault that the test above guards against."""
    logger = WandbLogger(offline=True, save_dir=tmp_path / "plain", project="own")
    run(tmp_path, logger, accept={"logger": "made-up rows"})
    times, content = told(tmp_path / "plain")
    assert len(set(times)) > 3
    assert socket.gethostname().encode() in content


def test_a_dry_run_shows_what_would_go_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    logger = make_wandb_logger(Run(wandb="dry", project="own"), folder=tmp_path / "run", config=CONFIG)
    assert logger is not None
    assert "sent to nowhere (a dry run):" in logger.told()[0]
    logger.start()
    logger.log_now({"test/mse": 0.25})
    finish_wandb(failed=False)
    wandb.teardown()
    said = capsys.readouterr().out
    assert "history  test/mse = 0.25" in said
    assert "config   privacy.target_epsilon = 8.0" in said
    assert "config   data.init_args.horizon = 24" in said
    assert not [secret for secret in SECRETS if secret in said]
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_dry_run_would_show_what_is_too_much(tmp_path):
    """The decoder hides nothing: an unguarded logger's file shows the host."""
    run_ = wandb.init(mode="offline", dir=tmp_path, project="own", config={"path": "/data/hôpital"})
    run_.log({"loss": 1.5})
    end_wandb()
    (path,) = tmp_path.rglob("*.wandb")
    text = "\n".join(described(path))
    assert "/data/hôpital" in text
    assert f"host = {socket.gethostname()}" in text
    assert "history  loss = 1.5" in text
