"""Before the first charge everything is known to finish: a fit is rehearsed, or only planned."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from own_parts import TestedRows

from lightning_dp.cli import main
from lightning_dp.privacy.ledger import Ledger

RECIPE = Path(__file__).parents[2] / "conf" / "experiment" / "demo_simulator.yaml"
OWN = [
    "--privacy.noise_multiplier=1",
    "--privacy.delta=1e-3",
    "--privacy.expected_batch_size=8",
    "--privacy.spot_check=0",
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--run.wandb=disabled",
]
TINY = [
    *OWN,
    "--data.init_args.num_households=30",
    "--data.init_args.num_days=90",
    "--model.init_args.net.init_args.hidden_size=8",
    "--model.init_args.num_samples=2",
    "--privacy.target_epsilon=null",
]


def own(module: str, data: str = "TestedRows") -> list[str]:
    return ["fit", f"--model=own_parts.{module}", f"--data=own_parts.{data}", *OWN]


@pytest.mark.parametrize(
    ("module", "data", "sentence"),
    [
        ("BrokenTest", "TestedRows", "its test of this fit would fail"),
        ("BrokenValidation", "TestedRows", "RuntimeError: no such metric"),
        ("Unpicklable", "Rows", "no checkpoint of Unpicklable can be written"),
    ],
)
def test_what_would_fail_after_the_fit_is_refused_before_its_charge(
    module, data, sentence, tmp_path, capsys, ledger_path
):
    assert main([*own(module, data), f"--run.dir={tmp_path / 'run'}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not ledger_path.exists()
    assert not list(tmp_path.rglob("*.*"))  # logger's own folder at most


@pytest.mark.parametrize(
    ("module", "data", "lacks"),
    [("Classifier", "TestedRows", "no test_step"), ("TestedClassifier", "Rows", "no test_dataloader")],
)
def test_a_test_that_nobody_wrote_is_left_out_and_said_so(module, data, lacks, tmp_path, capsys):
    assert main([*own(module, data), f"--run.dir={tmp_path / 'run'}"]) == 0
    assert (
        f"the test is left out: {module if 'step' in lacks else data} has {lacks}" in capsys.readouterr().out
    )
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_rehearsal_reads_no_row_and_leaves_no_trace(tmp_path, capsys, ledger_path, monkeypatch):
    def read(*_):
        raise AssertionError("a row was read")

    monkeypatch.setattr(TestedRows, "__getitem__", read, raising=False)
    monkeypatch.setattr("torch.utils.data.TensorDataset.__getitem__", read)
    monkeypatch.setattr("torch.utils.data.TensorDataset.__getitems__", read, raising=False)
    folder = tmp_path / "run"
    assert main([*own("TestedClassifier"), f"--run.dir={folder}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    for line in (
        "ε ",
        "σ = 1 at q = 0.125",
        "time ",
        "memory ",
        "disk ",
        "test     test/accuracy",
        "charged  to",
    ):
        assert line in text, text
    assert not folder.exists()
    assert not list(ledger_path.parent.iterdir())


def test_a_plan_names_what_would_be_refused_and_ends_with_1(tmp_path, capsys):
    assert main([*own("BrokenTest"), f"--run.dir={tmp_path / 'run'}", "--dry-run"]) == 1
    assert "[refused] its test of this fit would fail" in capsys.readouterr().out


def test_a_plan_adds_to_what_the_ledger_has(tmp_path, capsys, ledger_path):
    assert main([*own("Classifier"), f"--run.dir={tmp_path / 'run'}"]) == 0
    before = Ledger().head()
    assert main([*own("Classifier"), f"--run.dir={tmp_path / 'next'}", "--dry-run"]) == 0
    assert "with what the ledger has, ε = " in capsys.readouterr().out
    assert Ledger().head() == before


def test_a_disk_that_is_too_small_is_known_before(tmp_path, capsys, monkeypatch, ledger_path):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert main([*own("Classifier"), f"--run.dir={tmp_path / 'run'}"]) == 2
    assert "GiB left: free some, choose another run.dir" in capsys.readouterr().err
    assert not ledger_path.exists()


def test_baselines_of_days_are_left_out_where_the_context_has_none(tmp_path, capsys):
    """A private fit on quarter hours with a context of six: charged once, and ends with its result."""
    stamps = pd.date_range("2024-01-01", periods=96, freq="15min")
    rows = [
        pd.DataFrame({"id": f"c{number}", "time": stamps, "y": np.sin(np.arange(96) / 9 + number)})
        for number in range(12)
    ]
    pd.concat(rows).to_csv(tmp_path / "t.csv", index=False)
    config = {
        "model": {
            "class_path": "lightning_dp.TimeSeriesDiffusion",
            "init_args": {
                "net": {
                    "class_path": "lightning_dp.nets.SeriesDiT",
                    "init_args": {
                        "patch_size": 6,
                        "hidden_size": 8,
                        "depth": 1,
                        "num_heads": 2,
                        "conditioning": "lightning_dp.nets.AdaLNZero",
                    },
                },
                "normaliser": "lightning_dp.timeseries.DayMean",
                "num_samples": 2,
            },
        },
        "data": {
            "class_path": "lightning_dp.timeseries.Table",
            "init_args": {
                "path": str(tmp_path / "t.csv"),
                "name": "short",
                "layout": {
                    "class_path": "lightning_dp.timeseries.Long",
                    "init_args": {"id_column": "id", "time_column": "time", "target_columns": ["y"]},
                },
                "reading": {"frequency": "15min"},
                "context_length": 24,
                "horizon": 6,
                "cache_dir": str(tmp_path / "cache"),
                "split": {
                    "class_path": "lightning_dp.timeseries.ByCustomer",
                    "init_args": {"val_share": 0.0, "test_share": 0.5, "seed": 0},
                },
            },
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", f"--config={tmp_path / 'config.yaml'}", *OWN, "--privacy.expected_batch_size=3"]
    fit += [f"--run.dir={tmp_path / 'run'}", "--privacy.delta=1e-2"]
    assert main(fit) == 0
    printed = capsys.readouterr().out
    assert "seasonal naive and mean of days are left out: they repeat days of 96 steps" in printed
    results = (tmp_path / "run" / "results.json").read_text()
    assert "baseline/last_value/mse" in results
    assert "baseline/mean_of_days" not in results


def test_images_without_a_test_split_are_refused_before_the_charge(tmp_path, capsys, ledger_path):
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "train.npz",
        images=generator.integers(0, 256, (20, 8, 8), dtype=np.uint8),
        labels=np.arange(20) % 2,
    )
    recipe = Path(__file__).parents[2] / "conf" / "experiment" / "fashion_mnist.yaml"
    source = {
        "class_path": "lightning_dp.images.NPZ",
        "init_args": {"path": str(tmp_path), "class_names": ["a", "b"]},
    }
    config = yaml.safe_load(recipe.read_text())
    config["data"]["init_args"] |= {"source": source, "size": 8, "batch_size": 4}
    config["trainer"].pop("callbacks", None)
    config["model"]["init_args"]["net"]["init_args"] |= {
        "num_classes": 2,
        "size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "depth": 1,
    }
    config["model"]["init_args"].pop("base_denoiser", None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    fit = ["fit", f"--config={tmp_path / 'config.yaml'}", *OWN, f"--run.dir={tmp_path / 'run'}"]
    fit += ["--privacy.target_epsilon=null", "--privacy.delta=1e-2", "--privacy.expected_batch_size=4"]
    assert main(fit) == 2
    assert "has no test split" in capsys.readouterr().err
    assert not ledger_path.exists()


def test_a_fit_ends_with_what_it_cost_and_what_comes_next(tmp_path, capsys):
    folder = tmp_path / "run"
    fit = ["fit", f"--config={RECIPE}", *TINY, f"--run.dir={folder}", "--privacy.delta=1e-2"]
    assert main([*fit, "--trainer.limit_val_batches=0", "--trainer.limit_test_batches=1"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "per user at δ = 0.01",
        "undefined per record, window, event: that of a whole user covers",
        "in all   simulated-30-households",
        ", best baseline ",
        "beaten",
        f"folder   {folder}",
        f"lightning-dp verify {folder}",
    ):
        assert line in printed, printed


@pytest.mark.parametrize(
    ("num_rows", "said"),
    [
        (1, "the train set is a single record"),
        (64, "their gradients would add up to 0.021 of the noise's length"),
    ],
)
def test_one_unit_and_few_under_much_noise_are_warned_of(num_rows, said, tmp_path, caplog):
    fit = [*own("Classifier"), f"--data.num_rows={num_rows}", f"--run.dir={tmp_path / 'run'}"]
    fit += ["--privacy.expected_batch_size=1", "--privacy.noise_multiplier=9", "--run.test=false"]
    assert main(fit) == 0
    assert said in caplog.text
