"""A run folder is complete by itself, whatever loggers there are, and no logger takes private things away."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

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


def test_tensorboard_beside_the_run_folder(tmp_path):
    """Private, with a logger of the user's own: everything is where it always is, and there as well."""
    folder = tmp_path / "run"
    options = [
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={tmp_path / 'boards'}",
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
    assert "privacy/epsilon" in (folder / "metrics.csv").read_text()
    boards = (tmp_path / "boards").rglob("events.out.*")
    assert any(b"privacy/epsilon" in events.read_bytes() for events in boards)
    assert not list((tmp_path / "boards").rglob("privacy.json"))
    assert not (folder / "wandb").exists()  # the user chose another


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
