"""`lightning-dp forecast` and `LoadedRun.forecast`: what follows the last reading, joined to the input."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_dp import load_run
from lightning_dp.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of numpy

CONTEXT, HORIZON = 24, 6
MODEL = """
seed_everything: 0
model:
  class_path: lightning_dp.TimeSeriesDiffusion
  init_args:
    net:
      class_path: lightning_dp.SeriesDiT
      init_args:
        patch_size: 6
        hidden_size: 8
        depth: 1
        num_heads: 2
        conditioning: lightning_dp.AdaLNZero
    normaliser: lightning_dp.timeseries.DayMean
    sampler: {class_path: lightning_dp.Sampler, init_args: {num_steps: 2}}
    num_samples: 2
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001}}
privacy: null
trainer: {accelerator: cpu, devices: 1, max_steps: 2, limit_val_batches: 0, enable_progress_bar: false}
run: {wandb: disabled, test: false}
"""
DATA = """
data:
  class_path: lightning_dp.Table
  init_args:
    path: PATH
    name: toy
    cache_dir: CACHE
    layout:
      class_path: lightning_dp.timeseries.Long
      init_args: {id_column: customer, time_column: at, target_columns: [kwh]COVARIATES}
    reading: {frequency: h}
    context_length: 24
    horizon: 6
    unit: window
    short: drop
    batch_size: 8
"""


def fit(folder: Path, path: Path, *, covariates: str = "", task: str = "") -> Path:
    text = DATA.replace("PATH", str(path)).replace("CACHE", str(folder / "cache"))
    config = folder / "config.yaml"
    config.write_text(MODEL + text.replace("COVARIATES", covariates) + task)
    assert main(["fit", f"--config={config}", f"--run.dir={folder / 'run'}"]) == 0
    return folder / "run"


def level(customer: int) -> float:
    return 1000.0 * customer


def table(customers=(0, 3, 7, 9, 12), *, hours: int = 48, start: str = "2024-01-01") -> pd.DataFrame:
    """Of customer c all readings lie at 1000·c; each ends an hour later than the one before."""
    parts = []
    for number, customer in enumerate(customers):
        stamps = pd.date_range(start, periods=hours + number, freq="h")
        day = np.sin(np.arange(len(stamps)) * np.pi / 12)
        parts.append(pd.DataFrame({"customer": customer, "at": stamps, "kwh": level(customer) + day}))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    stamps = table()["at"].dt.strftime("%Y-%m-%dT%H:%M")
    table().assign(at=stamps).to_csv(folder / "t.csv", index=False)
    return fit(folder, folder / "t.csv")


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory) -> Path:
    """Forecasts and fills gaps, told a temperature; of a Parquet file with dates in New York's zone."""
    folder = tmp_path_factory.mktemp("mixed")
    weather().to_parquet(folder / "t.parquet", index=False)
    tasks = """
    task:
      class_path: lightning_dp.timeseries.Mixture
      init_args:
        tasks:
        - {class_path: lightning_dp.timeseries.Forecast, init_args: {horizon: 6}}
        - {class_path: lightning_dp.timeseries.PointImputation, init_args: {ratio: 0.3}}
"""
    return fit(
        folder, folder / "t.parquet", covariates=", covariates: {numeric: {celsius: [-20, 40]}}", task=tasks
    )


def weather() -> pd.DataFrame:
    frame = table().sort_values(["customer", "at"])
    frame["at"] = frame["at"].dt.tz_localize("America/New_York").astype("datetime64[ms, America/New_York]")
    frame["customer"] = frame["customer"].astype("int32")
    return frame.assign(celsius=5.0)


def ahead_of(frame: pd.DataFrame) -> set[tuple]:
    """(customer, stamp) of the steps after each customer's last reading."""
    return {
        (customer, last + pd.Timedelta(hours=step))
        for customer, last in frame.groupby("customer")["at"].max().items()
        for step in range(1, HORIZON + 1)
    }


def test_a_forecast_follows_each_customers_last_reading(run, tmp_path, capsys):
    output = tmp_path / "f.csv"
    assert main(["forecast", str(run), "--from", "LAST", "--seed=1", f"--output={output}"]) == 0
    written = pd.read_csv(output)
    assert list(written.columns) == ["customer", "at", "quantile", "kwh"]
    assert written["at"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00").all()
    found = set(zip(written["customer"], pd.to_datetime(written["at"]), strict=True))
    assert found == ahead_of(table())
    assert len(written) == 3 * len(found)
    # A forecast that belonged to another customer would be off by a thousand.
    assert (abs(written["kwh"] - written["customer"].map(level)) < 100).all()
    by_stamp = written.groupby(["customer", "at"])["kwh"]
    assert (by_stamp.apply(lambda values: values.is_monotonic_increasing)).all()
    report = json.loads((tmp_path / "f.csv.privacy.json").read_text())
    assert (report["kind"], report["contains_private_inputs"], report["left_out"]) == ("forecast", True, {})
    assert "no ε covers those rows" in report["statement"]
    assert "private inputs of whoever asked" in report["statement"]
    assert "no ε covers those rows" in capsys.readouterr().out


def test_from_a_stamp_a_forecast_joins_to_the_readings(run, tmp_path):
    output = tmp_path / "f.csv"
    options = ["--from", "2024-01-02 12:00", "--samples=2", "--wide", f"--output={output}"]
    assert main(["forecast", str(run), *options]) == 0
    written, known = pd.read_csv(output), pd.read_csv(run.parent / "t.csv")
    assert list(written.columns) == ["customer", "at", "kwh_1", "kwh_2"]
    joined = written.merge(known, on=["customer", "at"], how="left", validate="one_to_one")
    assert len(joined) == 5 * HORIZON
    assert joined["kwh"].notna().all()
    assert (abs(joined["kwh_1"] - joined["kwh"]) < 100).all()


def test_what_follows_a_stamp_is_not_looked_at(run):
    known = table()
    changed = known.assign(kwh=known["kwh"].where(known["at"] < "2024-01-02 12:00", 1e6))
    frames = [
        load_run(run).forecast(frame, start="2024-01-02 12:00", seed=3, quantiles=[0.5])
        for frame in (known, changed)
    ]
    pd.testing.assert_frame_equal(*frames)
    assert (frames[0]["kwh"] < 20_000).all()


@pytest.mark.parametrize("dtype", ["int64", "int16", "category", "str", "Int64"])
def test_a_frame_gets_its_own_dtypes_and_unknown_customers(run, dtype):
    """The run has never seen these customers: it knows whoever it is told by the context."""
    given = table((21, 22)).assign(customer=lambda frame: frame["customer"].astype(dtype))
    given["at"] = given["at"].astype("datetime64[s]")
    frame = load_run(run).forecast(given, quantiles=[0.25, 0.75], wide=True)
    assert frame["customer"].dtype == given["customer"].dtype
    assert frame["at"].dtype == given["at"].dtype
    assert list(frame.columns) == ["customer", "at", "kwh_q0.25", "kwh_q0.75"]
    both = pd.concat([given, frame]).astype({"customer": "int64"})
    per_customer = both.groupby("customer")["at"]
    assert not both.duplicated(["customer", "at"]).any()
    assert (per_customer.max() - per_customer.min() == pd.to_timedelta([53, 54], unit="h")).all()
    assert (per_customer.size() == [54, 55]).all()


def test_a_csv_is_joined_as_pandas_reads_it(run, tmp_path):
    table((5, 6)).to_csv(tmp_path / "n.csv", index=False)
    known = pd.read_csv(tmp_path / "n.csv")
    frame = load_run(run).forecast(str(tmp_path / "n.csv"), start="2024-01-02 12:00", wide=True)
    joined = frame.merge(known, on=["customer", "at"])
    assert len(joined) == len(frame) == 2 * HORIZON
    table((5, 6)).assign(customer="007").drop_duplicates(["at"]).to_csv(tmp_path / "z.csv", index=False)
    assert set(load_run(run).forecast(tmp_path / "z.csv")["customer"]) == {"007"}


def test_customers_that_are_too_short_are_counted_and_named(run, tmp_path, capsys):
    given = pd.concat([table((1,)), table((2, 4), hours=CONTEXT - 2), table((8,)).assign(kwh=np.nan)])
    given.to_csv(tmp_path / "n.csv", index=False)
    output = tmp_path / "f.parquet"
    assert main(["forecast", str(run), f"--data={tmp_path / 'n.csv'}", f"--output={output}"]) == 0
    text = capsys.readouterr().out
    assert "left out 2 of 4 series: too short" in text
    assert "22 steps before the forecast, of the 24 that the model reads" in text
    assert "left out 1 of 4 series: no reading before the forecast" in text
    assert set(pd.read_parquet(output)["customer"]) == {"1"}
    left_out = json.loads((tmp_path / "f.parquet.privacy.json").read_text())["left_out"]
    assert set(left_out) == {"2", "4", "8"}
    with pytest.warns(UserWarning, match="left out") as told:
        frame = load_run(run).forecast(tmp_path / "n.csv")
    assert "left out 2 of 4 series: too short" in " ".join(str(one.message) for one in told)
    assert set(frame.attrs["left_out"]) == {"2", "4", "8"}


def test_future_covariates_come_from_rows_without_a_reading(mixed_run, tmp_path):
    known = weather()
    last = known.groupby("customer")["at"].max()
    future = pd.concat(
        pd.DataFrame({"customer": np.int32(one), "at": pd.date_range(last[one], periods=7, freq="h")[1:]})
        for one in (3, 7)
    )
    future["at"] = future["at"].astype(known["at"].dtype)
    given = pd.concat([known, future.assign(kwh=np.nan, celsius=30.0)])
    with pytest.warns(UserWarning, match="left out 3 of 5 series: its covariates aren't known"):
        hot = load_run(mixed_run).forecast(given, seed=1)
    stamps = [set(zip(one["customer"], one["at"], strict=True)) for one in (hot, future)]
    assert stamps[0] == stamps[1]
    assert (hot["customer"].dtype, hot["at"].dtype) == (np.dtype("int32"), known["at"].dtype)
    given["celsius"] = given["celsius"].where(given["kwh"].notna(), -15.0)
    with pytest.warns(UserWarning, match="left out 3"):
        cold = load_run(mixed_run).forecast(given, seed=1)
    assert (hot["kwh"] != cold["kwh"]).any()  # the same draws, after two steps of training
    given.to_parquet(tmp_path / "n.parquet", index=False)
    output = tmp_path / "f.parquet"
    assert main(["forecast", str(mixed_run), f"--data={tmp_path / 'n.parquet'}", f"--output={output}"]) == 0
    written = pd.read_parquet(output)
    assert (written["customer"].dtype, written["at"].dtype) == (np.dtype("int32"), known["at"].dtype)


def test_gaps_are_filled_where_nothing_was_read_and_nowhere_else(mixed_run, tmp_path):
    known = weather()
    gaps = (known["customer"] == 3) & known["at"].dt.hour.isin([5, 6, 17])
    rows = known[~gaps]  # steps without a row …
    empty = (rows["customer"] == 9) & (rows["at"].dt.hour == 3)
    rows = rows.assign(kwh=rows["kwh"].where(~empty))  # … and cells without a value
    missing = pd.concat([known[gaps], rows[empty]])
    rows.to_parquet(tmp_path / "n.parquet", index=False)
    output = tmp_path / "f.parquet"
    data = f"--data={tmp_path / 'n.parquet'}"
    assert main(["forecast", str(mixed_run), data, "--fill-missing", "--wide", f"--output={output}"]) == 0
    written = pd.read_parquet(output)
    joined = written.merge(missing, on=["customer", "at"], how="outer", indicator=True, validate="one_to_one")
    assert (joined["_merge"] == "both").all()
    assert (abs(joined["kwh_q0.5"] - joined["customer"].map(level)) < 100).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantiles", "0.5", "1.5"], "strictly between 0 and 1"),
        (["--samples=0"], "number of samples is 0"),
        (["--from=02.03.2024"], "must be LAST, or a stamp such as 2024-01-31"),
        (["--from=2030-01-01"], "there is no window to predict"),
        (["--fill-missing"], "was trained to forecast 6 steps, not to fill gaps"),
        (["--data=nowhere.csv"], "names no .csv or .parquet file"),
        (["--data=nowhere.yaml"], "nowhere.yaml is not a file"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(run, tmp_path, capsys, options, message):
    assert main(["forecast", str(run), *options, f"--output={tmp_path / 'f.csv'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_table_with_other_columns_is_read_by_a_configuration(run, tmp_path):
    renamed = table((1, 2)).rename(columns={"customer": "meter", "kwh": "load"})
    renamed.to_csv(tmp_path / "other.csv", index=False)
    layout = "{id_column: meter, time_column: at, target_columns: [load]}"
    (tmp_path / "n.yaml").write_text(
        f"data: {{init_args: {{path: {tmp_path / 'other.csv'}, layout: {{init_args: {layout}}}}}}}"
    )
    output = tmp_path / "f.csv"
    assert main(["forecast", str(run), f"--data={tmp_path / 'n.yaml'}", f"--output={output}"]) == 0
    written = pd.read_csv(output)
    assert list(written.columns) == ["meter", "at", "quantile", "load"]
    assert set(written["meter"]) == {1, 2}


def test_sample_labels_test_windows_as_the_input_does(run, tmp_path):
    """Numbers of series in the id column would attach predictions to other customers."""
    output = tmp_path / "p.csv"
    assert main(["sample", str(run), "--seed=0", f"--output={output}"]) == 0
    written, known = pd.read_csv(output), pd.read_csv(run.parent / "t.csv")
    joined = written.merge(known, on=["customer", "at"], how="left", validate="many_to_one")
    assert len(joined) == len(written) > 0
    assert joined["kwh_y"].notna().all()
    assert (abs(joined["kwh_x"] - joined["kwh_y"]) < 100).all()
