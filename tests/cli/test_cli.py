"""The command line as a user meets it: whole fits, one-sentence errors, kill and resume."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_dp.cli import main
from lightning_dp.privacy.ledger import Ledger

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "conf" / "experiment" / "demo_simulator.yaml"
TINY = [
    "--trainer.max_steps=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--run.wandb=disabled",
    "--data.init_args.num_households=60",
    "--data.init_args.num_days=12",
    "--privacy.expected_batch_size=12",
    "--privacy.delta=1e-3",
    "--model.init_args.num_samples=4",
]


def fit(folder: Path, *options: str, recipe: Path = SMALL) -> int:
    return main(["fit", f"--config={recipe}", f"--run.dir={folder}", *TINY, *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One private run on simulated households, from the command line to its results."""
    folder = tmp_path_factory.mktemp("runs") / "private"
    os.environ["LIGHTNING_DP_LEDGER"] = str(folder.parent / "ledger.sqlite")
    assert fit(folder, "--run.method=dp-aware", "--run.wandb=offline") == 0
    return folder


def test_a_run_folder_is_complete_by_itself(finished):
    for name in ("config.yaml", "environment.json", "metrics.csv", "privacy.json", "results.json"):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "checkpoints" / "last.ckpt").exists()
    assert (finished / "plots" / "forecast_fan.png").stat().st_size > 10_000
    report = json.loads((finished / "privacy.json").read_text())
    results = json.loads((finished / "results.json").read_text())
    assert results["epsilon"] == report["epsilon_spent"] == pytest.approx(8, abs=0.01)
    assert results["unit"] == "user"
    assert results["metrics"]["test/epsilon"] == pytest.approx(results["epsilon"])
    assert {"test/mse", "test/mae", "test/crps", "baseline/mean_of_days/mse"} <= set(results["metrics"])
    with (finished / "metrics.csv").open() as file:
        epsilons = [float(row["privacy/epsilon"]) for row in csv.DictReader(file) if row["privacy/epsilon"]]
    assert len(epsilons) == 4
    assert epsilons == sorted(epsilons)


def test_offline_wandb_got_epsilon_and_no_private_statistic(finished):
    (binary,) = finished.glob("wandb/offline-run-*/run-*.wandb")
    content = binary.read_bytes()
    assert b"privacy/epsilon" in content
    assert b"nonprivate/" not in content


def test_config_of_a_run_repeats_it(finished, tmp_path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["run"]["dir"] == str(finished)
    again = tmp_path / "again"
    assert (
        main(["fit", f"--config={finished / 'config.yaml'}", f"--run.dir={again}", "--run.test=false"]) == 0
    )
    assert (again / "checkpoints" / "last.ckpt").exists()


def test_test_command_evaluates_the_checkpoint(finished):
    before = json.loads((finished / "results.json").read_text())
    (finished / "results.json").unlink()
    assert main(["test", f"--config={finished / 'config.yaml'}", "--ckpt_path=last"]) == 0
    after = json.loads((finished / "results.json").read_text())
    assert after["metrics"]["test/mse"] == pytest.approx(before["metrics"]["test/mse"], rel=1e-5)
    assert after["epsilon"] == before["epsilon"]


def test_a_test_in_another_folder_keeps_the_epsilon_of_its_weights_and_of_no_other(finished, tmp_path):
    test = ["test", f"--config={finished / 'config.yaml'}"]
    checkpoint = finished / "checkpoints" / "last.ckpt"
    assert main([*test, f"--run.dir={tmp_path / 'kept'}", f"--ckpt_path={checkpoint}"]) == 0
    kept = json.loads((tmp_path / "kept" / "results.json").read_text())
    assert kept["epsilon"] == json.loads((finished / "results.json").read_text())["epsilon"]
    # The same weights in the folder of a run that was not theirs.
    stranger = tmp_path / "stranger"
    (stranger / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoint, stranger / "checkpoints")
    (stranger / "privacy.json").write_text('{"run": "another", "epsilon_spent": 0.1, "epsilon": 0.1}')
    moved = stranger / "checkpoints" / "last.ckpt"
    assert main([*test, f"--run.dir={tmp_path / 'unknown'}", f"--ckpt_path={moved}"]) == 0
    assert "unknown" in json.loads((tmp_path / "unknown" / "results.json").read_text())["epsilon"]


def test_predict_command_saves_forecasts(finished):
    assert main(["predict", f"--config={finished / 'config.yaml'}", "--ckpt_path=last"]) == 0
    saved = np.load(finished / "nonprivate_predictions.npz")
    rows, samples = saved["samples"].shape[:2]
    assert samples == 4
    assert saved["point"].shape == (rows, 120, 1)
    assert np.isfinite(saved["quantiles"]).all()
    assert str(saved["contains_private_inputs"]).startswith("contains private inputs")
    beside = json.loads((finished / "nonprivate_predictions.npz.privacy.json").read_text())
    assert (beside["epsilon"], beside["statement"]) == ("inf", str(saved["contains_private_inputs"]))
    assert not (finished / "predictions.npz").exists()


def test_settings_on_the_command_line_win_over_those_in_a_checkpoint(finished, tmp_path):
    checkpoint = finished / "checkpoints" / "last.ckpt"
    predict = ["predict", f"--config={finished / 'config.yaml'}", f"--ckpt_path={checkpoint}"]
    assert main([*predict, f"--run.dir={tmp_path}", "--model.init_args.num_samples=3"]) == 0
    assert np.load(tmp_path / "nonprivate_predictions.npz")["samples"].shape[1] == 3


def test_several_devices_score_and_predict_every_row_once(finished, tmp_path):
    """Their number does not divide that of the rows, so that a sampler which fills up would repeat some."""
    devices = 4
    checkpoint = finished / "checkpoints" / "last.ckpt"
    common = [f"--config={finished / 'config.yaml'}", f"--ckpt_path={checkpoint}"]
    for folder, ranks in (("one", 1), ("several", devices)):
        own = [*common, f"--run.dir={tmp_path / folder}", f"--trainer.devices={ranks}"]
        own += ["--trainer.strategy=ddp_fork"] if ranks > 1 else []
        for subcommand in ("test", "predict"):
            assert main([subcommand, *own]) == 0
    scores = [json.loads((tmp_path / f / "results.json").read_text())["metrics"] for f in ("one", "several")]
    assert scores[1].keys() == scores[0].keys()
    for name in ("test/mse", "test/mae", "test/rmse", "baseline/mean_of_days/mse"):
        assert scores[1][name] == pytest.approx(scores[0][name], rel=1e-6)
    one, several = (
        np.load(tmp_path / folder / "nonprivate_predictions.npz") for folder in ("one", "several")
    )
    rows = len(one["point"])
    assert rows % devices
    assert several["point"].shape == one["point"].shape
    context = 96  # what was known is repeated as it was, and tells whose row it is
    np.testing.assert_array_equal(several["point"][:, :context], one["point"][:, :context])


def test_validate_command_runs(finished):
    assert main(["validate", f"--config={finished / 'config.yaml'}", "--ckpt_path=last"]) == 0


def test_a_second_fit_does_not_write_over_a_run(finished, capsys):
    assert fit(finished) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_without_privacy_every_artefact_says_infinity(tmp_path, capsys):
    assert fit(tmp_path / "plain", "--privacy=null") == 0
    assert "ε = ∞" in capsys.readouterr().out
    assert json.loads((tmp_path / "plain" / "privacy.json").read_text())["epsilon"] == "inf"
    assert json.loads((tmp_path / "plain" / "results.json").read_text())["epsilon"] == "inf"


def test_report_compares_runs(finished, capsys):
    plot = finished.parent / "mse.png"
    assert main(["report", str(finished.parent), f"--plot={plot}"]) == 0
    assert plot.stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "dp-aware" in out
    assert "mean of days" in out
    assert main(["report", str(finished.parent), f"--plot={plot}", "--metric=fid"]) == 2
    assert "fid" in capsys.readouterr().err
    assert main(["report", "no/such/folder"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--privacy.target_epsilon=0"], "target_epsilon must be above 0"),
        (["--privacy.delta=1"], "delta must be"),
        (["--privacy.max_grad_norms=1"], "max_grad_norms"),
        (["--privacy.expected_batch_size=1000000"], "between 1 and the"),
        (["--trainer.accumulate_grad_batches=2"], "accumulate_grad_batches"),
        (["--trainer.max_steps=-1"], "max_steps"),
        (["--trainer.max_step=3"], "max_step"),
        (["--model=lightning_dp.NoSuchModel"], "NoSuchModel"),
        (["--data=lightning_dp.timeseries.data.ett.ETT", "--data.init_args.name=ETTx"], "ETTx"),
        (["--data.init_args.horizon=5000"], "window"),
        (["--run.checkpoint_every=0"], "checkpoint_every"),
        (["--ckpt_path=no.ckpt"], "no.ckpt"),
        (["--config=no.yaml"], "no.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(tmp_path, capsys, options, message):
    folder = tmp_path / "run"
    assert fit(folder, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert len(error) < 600
    assert not (folder / "privacy.json").exists()
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("OT", "XX", 1), "no column 'OT'"),
        (lambda text: "\n".join(text.splitlines()[:50]), "ETTh1"),
        (lambda text: text.replace(text.splitlines()[100].split(",")[3], "", 1), "line"),
    ],
    ids=["wrong column", "too short", "missing value"],
)
def test_bad_csv_is_one_sentence(tmp_path, capsys, monkeypatch, edit, message):
    header = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"
    lines = [f"2016-07-{1 + i // 24:02d} {i % 24:02d}:00:00,1,2,{i}.5,4,5,6,7" for i in range(24 * 30)]
    folder = tmp_path / "data" / "ett"
    folder.mkdir(parents=True)
    (folder / "ETTh1.csv").write_text(edit("\n".join([header, *lines])))
    monkeypatch.setenv("LIGHTNING_DP_DATA", str(folder.parent))
    recipe = ROOT / "conf" / "experiment" / "demo_etth1.yaml"
    options = ["--run.wandb=disabled", "--trainer.max_steps=1"]
    assert main(["fit", f"--config={recipe}", f"--run.dir={tmp_path / 'run'}", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert not (tmp_path / "run" / "privacy.json").exists()


def test_unknown_command_and_help(capsys):
    assert main(["fitt"]) == 2
    assert "no command 'fitt'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "privacy" in capsys.readouterr().out


def test_killed_and_resumed_goes_on_with_its_epsilon(tmp_path):
    """SIGKILL in the middle of a fit, then --ckpt_path: ε continues and never under-reports."""
    folder, ledger = tmp_path / "run", tmp_path / "ledger.sqlite"
    environment = {**os.environ, "LIGHTNING_DP_LEDGER": str(ledger), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-m", "lightning_dp", "fit", f"--config={SMALL}", f"--run.dir={folder}", *TINY]
    command += ["--trainer.max_steps=80", "--run.checkpoint_every=5", "--run.test=false"]
    command += ["--privacy.reserve_steps=20"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint = folder / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert process.poll() is None, "the fit ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    charged_before = sum(event.steps for event in Ledger(ledger).events(_dataset(ledger), unit="user"))
    assert 5 <= charged_before < 80
    before = json.loads((folder / "privacy.json").read_text())
    assert before["status"] == "running"

    done = subprocess.run(
        [*command, f"--ckpt_path={checkpoint}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = json.loads((folder / "privacy.json").read_text())
    charged = sum(event.steps for event in Ledger(ledger).events(_dataset(ledger), unit="user"))
    assert after["run"] == before["run"]
    assert after["status"] == "finished"
    assert after["steps_charged"] == charged == 80
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("privacy/epsilon")]
    assert float(rows[-1]["privacy/epsilon"]) == pytest.approx(after["epsilon_spent"], rel=1e-5)
    assert float(rows[-1]["privacy/steps"]) == 80


def _dataset(ledger: Path) -> str:
    ((dataset, _),) = Ledger(ledger).accounts()
    return dataset
