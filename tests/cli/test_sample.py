"""`lightning-dp sample`: tables in the input's schema, and a report that says no more than is true."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_dp.cli import main
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.export import TableWriter

# diffusers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
TINY = [
    "--trainer.max_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--run.wandb=disabled",
    "--run.test=false",
    "--model.init_args.net.init_args.hidden_size=8",
    "--model.init_args.net.init_args.patch_size=24",
    "--model.init_args.sampler.init_args.num_steps=2",
    "--data.init_args.windows_per_user=1",
    # Noise that is given need not be calibrated, which takes long for so few steps.
    "--privacy.target_epsilon=null",
    "--privacy.noise_multiplier=2",
    "--privacy.delta=1e-2",
    "--privacy.expected_batch_size=6",
]
LENGTH = 48


def fit(folder: Path, *options: str) -> Path:
    recipe = ROOT / "conf" / "experiment" / "synthesise_simulator.yaml"
    households = ["--data.init_args.num_households=30", "--data.init_args.num_days=6"]
    assert main(["fit", f"--config={recipe}", f"--run.dir={folder}", *TINY, *households, *options]) == 0
    return folder


@pytest.fixture(scope="module")
def synthetic_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("synthesis")
        patch.setenv("LIGHTNING_DP_LEDGER", str(folder / "ledger.sqlite"))
        return fit(folder / "run")


@pytest.fixture(scope="module")
def forecasting_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("forecast")
        patch.setenv("LIGHTNING_DP_LEDGER", str(folder / "ledger.sqlite"))
        forecast = "--data.init_args.task=lightning_dp.timeseries.masks.Forecast"
        return fit(folder / "run", forecast, "--data.init_args.task.horizon=24", "--privacy=null")


def sample(run: Path, output: Path, *options: str) -> int:
    return main(["sample", str(run), f"--output={output}", *options])


SYNTHESIS = ["--start=2024-02-28", "--condition=temperature=5"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_synthetic_series_have_ids_stamps_and_channels(synthetic_run, tmp_path, ending):
    output = tmp_path / f"new folder/days.{ending}"
    assert sample(synthetic_run, output, "--num=7", "--days=3", "--seed=1", *SYNTHESIS) == 0
    table = pd.read_csv(output, parse_dates=["date"]) if ending == "csv" else pd.read_parquet(output)
    assert list(table.columns) == ["id", "date", "load"]
    assert table["id"].nunique() == 7
    assert (table.groupby("id").size() == LENGTH).all()
    assert table["load"].between(0, np.inf).all()
    starts = table.groupby("id")["date"].min().dt.strftime("%m-%d").tolist()
    assert starts == ["02-28", "02-29", "03-01"] * 2 + ["02-28"]
    assert (table.groupby("id")["date"].diff().dropna() == pd.Timedelta("1h")).all()
    assert [path.name for path in sorted(output.parent.iterdir())] == [
        output.name,
        *(
            f"{output.name}.{beside}"
            for beside in (
                "README.md",
                "croissant.json",
                "privacy.json",
                "privacy_report.html",
                "privacy_report.md",
            )
        ),
    ]


def test_the_report_repeats_the_runs_account(synthetic_run, tmp_path):
    output = tmp_path / "days.parquet"
    assert sample(synthetic_run, output, "--num=3", *SYNTHESIS) == 0
    report = json.loads((tmp_path / "days.parquet.privacy.json").read_text())
    account = json.loads((synthetic_run / "privacy.json").read_text())
    assert report["epsilon"] == account["epsilon_spent"]
    assert report["epsilon_of_unit"] == account["epsilon_of_unit"]
    assert report["ledger"] == [account["ledger_seq"], account["ledger_hash"]]
    for field in ("delta", "noise_multiplier", "unit", "relation"):
        assert report[field] == account[field]
    assert report["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert report["rows"] == 3 * LENGTH
    assert report["read_rows"] is False
    assert "costs no further ε" in report["statement"]


def test_synthesis_reads_no_row(synthetic_run, tmp_path, monkeypatch):
    def read_splits(self):
        raise AssertionError("data was read")

    monkeypatch.setattr(HouseholdLoad, "read_splits", read_splits)
    assert sample(synthetic_run, tmp_path / "days.csv", "--num=1", *SYNTHESIS) == 0


def test_a_seed_repeats_the_draws_and_chunks_change_nothing_but_them(synthetic_run, tmp_path):
    files = [tmp_path / f"{name}.csv" for name in "abc"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        assert sample(synthetic_run, file, "--num=300", f"--seed={seed}", *SYNTHESIS) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()
    assert pd.read_csv(files[0])["id"].nunique() == 300  # two chunks of windows


def test_another_number_of_steps(synthetic_run, tmp_path, capsys):
    files = [tmp_path / f"{steps}.csv" for steps in (1, 9)]
    for file in files:
        assert sample(synthetic_run, file, "--num=2", "--seed=1", f"--steps={file.stem}", *SYNTHESIS) == 0
        assert json.loads(Path(f"{file}.privacy.json").read_text())["num_steps"] == int(file.stem)
    assert files[0].read_bytes() != files[1].read_bytes()
    refused = tmp_path / "0.csv"
    assert sample(synthetic_run, refused, "--num=2", "--steps=0", *SYNTHESIS) == 2
    assert "num_steps is 0, but sampling takes at least one" in capsys.readouterr().err
    assert not refused.exists()


def test_predictions_say_that_they_read_rows(forecasting_run, tmp_path):
    output = tmp_path / "forecasts.csv"
    assert sample(forecasting_run, output, "--num=2", "--samples=3", "--seed=0") == 0
    table = pd.read_csv(output)
    assert list(table.columns) == ["id", "date", "sample", "load"]
    assert len(table) == 2 * 3 * 24
    assert table.groupby(["id", "date"])["load"].nunique().gt(1).any()
    report = json.loads((tmp_path / "forecasts.csv.privacy.json").read_text())
    assert report["epsilon"] == "inf"
    assert report["read_rows"] is True
    assert report["statement"].startswith("ε = ∞")
    assert "no ε covers those rows" in report["statement"]


@pytest.mark.parametrize("missing", ["config.yaml", "privacy.json", "checkpoints/last.ckpt"])
def test_an_incomplete_run_folder_is_refused(synthetic_run, tmp_path, capsys, missing):
    copy = shutil.copytree(synthetic_run, tmp_path / "copy")
    (copy / missing).unlink()
    assert sample(copy, tmp_path / "days.csv", "--num=1", *SYNTHESIS) == 2
    assert f"{missing}, " in capsys.readouterr().err
    assert not (tmp_path / "days.csv").exists()


def test_weights_of_another_run_are_refused(synthetic_run, forecasting_run, tmp_path, capsys):
    """Weights trained without privacy under the account of a private run: the ε would be a lie."""
    copy = shutil.copytree(synthetic_run, tmp_path / "copy")
    shutil.copy(forecasting_run / "checkpoints/last.ckpt", copy / "checkpoints/last.ckpt")
    assert sample(copy, tmp_path / "days.csv", "--num=1", *SYNTHESIS) == 2
    assert "trained without privacy and a privacy.json that says otherwise" in capsys.readouterr().err


def test_an_account_that_ends_before_the_weights_is_refused(synthetic_run, tmp_path, capsys):
    copy = shutil.copytree(synthetic_run, tmp_path / "copy")
    account = json.loads((copy / "privacy.json").read_text())
    for changes in ({"ledger_seq": 0}, {"run": "another"}):
        (copy / "privacy.json").write_text(json.dumps(account | changes))
        assert sample(copy, tmp_path / "days.csv", "--num=1", *SYNTHESIS) == 2
        assert "which doesn't cover them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num=0", *SYNTHESIS], "--num is 0"),
        (["--num=1", "--condition=temperature=5"], "--start is missing"),
        (["--num=1", "--start=yesterdayish", "--condition=temperature=5"], "is no date"),
        (["--num=1", "--start=2024-01-01"], "give --condition temperature=VALUE"),
        (["--num=1", "--start=2024-01-01", "--condition=temperature=99"], "between -15.0 and 35.0"),
        (["--num=1", *SYNTHESIS, "--condition=wind=3"], "names 'wind'"),
        (["--num=1", *SYNTHESIS, "--samples=2"], "--samples is of predictions"),
        (["--num=1", *SYNTHESIS, "--days=0"], "--days is 0"),
    ],
)
def test_mistakes_are_one_sentence(synthetic_run, tmp_path, capsys, options, message):
    assert sample(synthetic_run, tmp_path / "days.csv", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_file_formats_are_refused(synthetic_run, tmp_path, capsys):
    assert sample(synthetic_run, tmp_path / "days.xlsx", "--num=1", *SYNTHESIS) == 2
    assert "must be one of .csv, .parquet" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_failure_leaves_no_half_written_table(tmp_path, name):
    def write() -> None:
        with TableWriter(tmp_path / name) as table:
            table.write(pd.DataFrame({"id": ["x"], "load": [1.0]}))
            assert list(tmp_path.iterdir())  # under another name
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_sampling_takes_the_averaged_weights(synthetic_run):
    saved = torch.load(synthetic_run / "checkpoints/last.ckpt", weights_only=True)
    assert "training_weights" in saved  # the state dict beside them is the average, which is what loads
