"""`lightning-dp init`: guesses that are right or asked, nothing overwritten, and a project that runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from lightning_dp.cli import main
from lightning_dp.starter.images import start_images
from lightning_dp.starter.table import start_table

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of numpy


def meters(number: int, *, steps: int, freq: str, first: str = "2024-01-01") -> pd.DataFrame:
    stamps = pd.date_range(first, periods=steps, freq=freq)
    parts = [
        pd.DataFrame(
            {"meter": f"{one:03d}", "time": stamps, "kwh": np.sin(np.arange(steps) / 4) + 1.25 * one}
        )
        for one in range(number)
    ]
    return pd.concat(parts, ignore_index=True)


def started(tmp_path: Path, frame: pd.DataFrame, name: str = "t.csv", **options):
    path = tmp_path / name
    if name.endswith(".csv"):
        frame.to_csv(path, index=False, **options)
    else:
        frame.to_parquet(path, index=False)
    starter, budget = start_table(path)
    return yaml.safe_load(starter.config), starter, budget


def test_a_table_of_customers_is_protected_by_user(tmp_path):
    config, starter, budget = started(tmp_path, meters(40, steps=24 * 40, freq="h"))
    data = config["data"]["init_args"]
    assert data["layout"]["class_path"] == "lightning_dp.timeseries.Long"
    assert data["layout"]["init_args"] == {
        "id_column": "meter",
        "time_column": "time",
        "target_columns": ["kwh"],
    }
    assert data["reading"] == {"frequency": "h"}
    assert (data["context_length"], data["horizon"], data["unit"]) == (168, 24, "user")
    assert (budget.unit, budget.num_units, budget.batch) == ("user", 32, 16)
    assert config["privacy"] == {
        "target_epsilon": 8,
        "delta": 1e-4,
        "expected_batch_size": 16,
        "max_grad_norm": 1.0,
    }
    assert any("'meter' names 40 customers" in guess for guess in starter.guesses)
    # Every line that was read off the rows says so; what can't be read off them is asked.
    marked = [line for line in starter.config.splitlines() if "guess from the data" in line]
    for key in ("id_column", "time_column", "frequency", "context_length", "expected_batch_size"):
        assert any(key in line for line in marked), key
    for question in ("data.name", "model.bounds", "ε", "time zone"):
        assert any(question in one for one in starter.questions), question


def test_what_others_write_is_recognised(tmp_path):
    frame = meters(30, steps=60, freq="D").rename(columns={"meter": "Kunde", "time": "Datum"})
    frame["Datum"] = frame["Datum"].dt.strftime("%d.%m.%Y")
    config, _, _ = started(tmp_path, frame, sep=";", decimal=",")
    data = config["data"]["init_args"]
    assert data["reading"] == {"delimiter": ";", "decimal": ",", "time_format": "%d.%m.%Y", "frequency": "D"}
    assert data["layout"]["init_args"]["id_column"] == "Kunde"
    assert (data["context_length"], data["horizon"]) == (21, 7)  # shorter than usual, for series of 60 days
    assert data["context_length"] + data["horizon"] <= 30


def test_a_day_that_could_be_a_month_is_asked(tmp_path):
    frame = meters(30, steps=12, freq="h", first="2024-03-02")
    frame["time"] = frame["time"].dt.strftime("%d/%m/%Y %H:%M")
    config, starter, budget = started(tmp_path, frame)
    reading = config["data"]["init_args"]["reading"]
    assert reading == {"time_format": None, "frequency": None}  # neither can be read, so no fit starts
    assert any("'%d/%m/%Y %H:%M' or '%m/%d/%Y %H:%M'" in one for one in starter.questions)
    assert budget is None
    later = frame.assign(time=pd.date_range("2024-03-20", periods=360, freq="h").strftime("%d/%m/%Y %H:%M"))
    found, _, _ = started(tmp_path, later)
    assert found["data"]["init_args"]["reading"]["time_format"] == "%d/%m/%Y %H:%M"


def test_a_stamp_and_seven_columns_are_one_series_unless_they_are_customers(tmp_path):
    stamps = pd.date_range("2024-01-01", periods=1000, freq="h")
    frame = pd.DataFrame({"date": stamps, **{name: np.arange(1000.0) for name in "abcdefg"}})
    config, starter, budget = started(tmp_path, frame, "ett.parquet")
    data = config["data"]["init_args"]
    assert data["layout"]["class_path"] == "lightning_dp.timeseries.Single"
    assert data["layout"]["init_args"] == {"time_column": "date", "target_columns": list("abcdefg")}
    assert (data["unit"], budget.unit) == ("window", "window")
    assert data["split"]["init_args"]["test_from"] == "2024-02-03"
    assert any("whether its columns are customers" in one for one in starter.questions)


@pytest.mark.parametrize(
    ("freq", "text"),
    [("30min", "30min"), ("MS", "MS"), ("28D", "4W"), ("30D", "30D"), ("W-MON", "W"), ("15s", "15s")],
)
def test_the_step_is_named_as_pandas_does(tmp_path, freq, text):
    config, _, _ = started(tmp_path, meters(3, steps=50, freq=freq))
    assert config["data"]["init_args"]["reading"]["frequency"] == text


def images(folder: Path, *, split: str = "train", mode: str = "L", size=(28, 28)) -> Path:
    for name in ("cat", "dog"):
        (folder / split / name).mkdir(parents=True)
        for number in range(20):
            Image.new(mode, size).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [("L", (28, 28), (28, "grey", "error", 7)), ("RGB", (120, 90), (64, "rgb", "crop", 8))],
)
def test_a_folder_of_images(tmp_path, mode, size, expected):
    starter, budget = start_images(images(tmp_path / "pets", mode=mode, size=size))
    config = yaml.safe_load(starter.config)
    data, net = config["data"]["init_args"], config["model"]["init_args"]["net"]["init_args"]
    assert (data["size"], data["mode"], data["other_sizes"], net["patch_size"]) == expected
    assert (net["num_classes"], net["in_channels"], budget.num_units) == (2, 1 if mode == "L" else 3, 40)
    assert config["run"]["test"] is False
    assert any("no test split" in one for one in starter.questions)


def test_a_project_of_images_parses_and_tells_its_time(tmp_path, capsys):
    folder = images(tmp_path / "pets")
    images(folder, split="test")
    assert main(["init", str(folder), f"--out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert "minute(s) of training" in text
    assert "no ε was spent" in text
    assert "lightning-dp evaluate" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: (folder / "t.csv").write_text("id,kwh\na,1\n"),
            "no column of stamps among its 2",
        ),
        (lambda folder: (folder / "t.csv").write_text("id,time\na,2024-01-01\n"), "no column of numbers"),
        (lambda folder: (folder / "t.csv").write_text("id,time,kwh\n"), "no rows below its header"),
        (lambda folder: (folder / "t.parquet").write_bytes(b"PAR1"), "can't be read as Parquet"),
        (
            lambda folder: (folder / "notes.txt").write_text("hello"),
            "no .csv or .parquet table",
        ),
    ],
)
def test_what_is_neither_is_refused_in_a_sentence(tmp_path, capsys, make, message):
    folder = tmp_path / "mine"
    folder.mkdir()
    make(folder)
    assert main(["init", str(folder), f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    meters(3, steps=48, freq="h").to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert main(["init", str(tmp_path / "t.csv"), f"--out={tmp_path / 'out'}"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_four_commands_from_a_table_of_forty_customers_to_a_forecast(tmp_path, monkeypatch, capsys):
    """init, fit, forecast, verify: ε per user, and each predicted row joins by id and time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = meters(40, steps=24 * 20, freq="h")
    table["time"] = table["time"].dt.strftime("%Y-%m-%dT%H:%M")
    cut = table["meter"].astype(int) * 3 > 480 - 1 - table.groupby("meter").cumcount()  # each ends elsewhere
    table = table[~cut].sample(frac=1, random_state=0)
    table.to_csv("readings.csv", index=False)
    assert main(["init", "readings.csv", "--out", "meters"]) == 0
    toy = ["--trainer.max_steps=3", "--trainer.enable_progress_bar=false", "--model.init_args.num_samples=2"]
    toy += ["--trainer.limit_test_batches=1", "--model.init_args.sampler=lightning_dp.Sampler"]
    toy += ["--model.init_args.sampler.init_args.num_steps=2"]
    # Noise that is given need not be calibrated, which takes long for so few steps.
    toy += ["--privacy.target_epsilon=null", "--privacy.noise_multiplier=2"]
    assert main(["fit", "--config", "meters/config.yaml", "--run.dir", "runs/meters", *toy]) == 0
    assert main(["forecast", "runs/meters", "--output", "forecast.csv"]) == 0
    assert main(["verify", "runs/meters"]) == 0
    assert "Nothing contradicts runs/meters/privacy.json" in capsys.readouterr().out
    report = json.loads(Path("runs/meters/privacy.json").read_text())
    assert (report["unit"], report["steps_charged"]) == ("user", 3)
    text = {"meter": str, "time": str}
    known, ahead = pd.read_csv("readings.csv", dtype=text), pd.read_csv("forecast.csv", dtype=text)
    assert set(ahead["meter"]) == set(known["meter"])
    assert len(ahead) == 40 * 24 * 3
    last = known.groupby("meter")["time"].max()
    expected = {
        (meter, stamp)
        for meter, stamp in last.items()
        for stamp in pd.date_range(stamp, periods=25, freq="h")[1:].strftime("%Y-%m-%dT%H:%M")
    }
    assert set(zip(ahead["meter"], ahead["time"], strict=True)) == expected
    # Each meter's level is 1.25 above the one before: a forecast of another meter would show.
    middle = ahead[ahead["quantile"] == 0.5].groupby("meter")["kwh"].mean()
    assert np.corrcoef(middle, known.groupby("meter")["kwh"].mean())[0, 1] > 0.99
