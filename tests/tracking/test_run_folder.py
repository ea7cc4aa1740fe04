"""A run folder is complete by itself, whatever loggers there are, and no logger takes private things away."""

import csv
import json
import struct
from collections import defaultdict
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from tensorboardX.proto import event_pb2

from lightning_dp.cli import main
from lightning_dp.tracking.local_loggers import check_loggers
from lightning_dp.tracking.results import read_results
from lightning_dp.tracking.run_folder import new_run_folder

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "conf" / "experiment" / "demo_simulator.yaml"
TINY = [
    "--trainer.max_steps=3",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--data.init_args.num_households=60",
    "--data.init_args.num_days=12",
    "--model.init_args.num_samples=2",
]


def strict(path: Path) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{path} has {word}, which is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def scalars(boards: Path) -> dict[str, dict[int, float]]:
    """Name → step → value of TensorBoard's files, whose records are length, checksum, event, checksum."""
    found = defaultdict(dict)
    for events in boards.rglob("events.out.*"):
        content = events.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return found


def columns(table: Path) -> dict[str, dict[int, float]]:
    """Name → step → value of a metrics.csv."""
    found = defaultdict(dict)
    for row in csv.DictReader(table.open()):
        for name, text in row.items():
            if text and name != "step":
                found[name][int(row["step"])] = float(text)
    return found


def test_other_loggers_get_all_that_the_run_folder_has(tmp_path):
    """Private, with loggers of the user's own: everything is where it always is, and there as well."""
    folder, boards, tables = tmp_path / "run", tmp_path / "boards", tmp_path / "tables"
    options = [
        "--trainer.logger+=TensorBoardLogger",
        f"--trainer.logger.save_dir={boards}",
        "--trainer.logger+=CSVLogger",
        f"--trainer.logger.save_dir={tables}",
        "--privacy.target_epsilon=null",
        "--privacy.noise_multiplier=1",
        "--privacy.expected_batch_size=12",
        "--seed_everything=7",
    ]
    assert main(["fit", f"--config={SMALL}", f"--run.dir={folder}", *TINY, *options]) == 0
    results, report = strict(folder / "results.json"), strict(folder / "privacy.json")
    assert results["epsilon"] == report["epsilon_spent"] > 0
    assert results["seed"] == 7
    assert results["facts"]["task"]
    own = columns(folder / "metrics.csv")
    assert list(own["privacy/epsilon"].values())[-1] == pytest.approx(results["epsilon"])
    assert own["test/mse"] == {3: pytest.approx(results["metrics"]["test/mse"])}
    (table,) = tables.rglob("metrics.csv")
    assert columns(table) == own
    board = scalars(boards)
    for name, values in own.items():
        assert board[name] == pytest.approx(values, rel=1e-5), name  # TensorBoard keeps 32 bits
    assert not list(boards.rglob("privacy.json"))
    assert not (folder / "wandb").exists()  # the user chose others


def test_results_are_strict_json_without_privacy(tmp_path):
    folder = tmp_path / "run"
    options = ["--privacy=null", "--run.wandb=disabled"]
    assert main(["fit", f"--config={SMALL}", f"--run.dir={folder}", *TINY, *options]) == 0
    assert strict(folder / "results.json")["metrics"]["test/epsilon"] == "inf"
    (read,) = read_results([folder])
    assert read.epsilon == float("inf")


def test_loggers_that_may_send_things_away_are_refused(tmp_path):
    here = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path)]
    check_loggers(here, share_nonprivate=False)
    away = MLFlowLogger.__new__(MLFlowLogger)  # its package is not installed; only its class is looked at
    with pytest.raises(ValueError, match="MLFlowLogger, which may send"):
        check_loggers([*here, away], share_nonprivate=False)
    check_loggers([*here, away], share_nonprivate=True)
    with pytest.raises(ValueError, match="TensorBoardLogger, which may send"):
        check_loggers([TensorBoardLogger("memory://elsewhere")], share_nonprivate=False)


def test_a_logger_that_sends_is_refused_before_anything_is_written(tmp_path, capsys):
    options = ["--trainer.logger=lightning.pytorch.loggers.WandbLogger"]
    assert main(["fit", f"--config={SMALL}", f"--run.dir={tmp_path / 'run'}", *TINY, *options]) == 2
    assert "WandbLogger, which may send" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_under_an_agent_the_folder_is_named_after_the_sweep(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "xyz")
    assert new_run_folder() == Path("runs") / "sweep-abc" / "xyz"
