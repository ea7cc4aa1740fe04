"""The user's own table: what works, what stops before training, and what it says."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from pyarrow import parquet

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.cli import main
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.timeseries.data.own_table.frequency import Frequency
from lightning_dp.timeseries.data.own_table.layout import Covariates, Long, Wide
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.split import ByCustomer, ByCustomerAndTime, ByTime
from lightning_dp.timeseries.data.table import Table
from lightning_dp.timeseries.masks import PointImputation

ROOT = Path(__file__).parents[2]
LONG = Long(id_column="meter", time_column="time", target_columns=["kwh"])
TIMES = ByTime(test_from="2024-01-08")
HOURLY = Reading(frequency="h")


def readings(customer: str, *, days: int = 10, start: str = "2024-01-01", seed: int = 0) -> pd.DataFrame:
    """Hourly rows whose kwh says which hour of the table they are from."""
    stamps = pd.date_range(start, periods=24 * days, freq="h")
    hours = (stamps - pd.Timestamp("2024-01-01")) // pd.Timedelta(hours=1)
    return pd.DataFrame({"meter": customer, "time": stamps, "kwh": hours + seed / 10})


def table(tmp_path: Path, frame: pd.DataFrame | None, **changes) -> Table:
    if frame is not None:
        frame.to_csv(tmp_path / "load.csv", index=False)
    arguments = {
        "name": "test meters",
        "layout": LONG,
        "context_length": 24,
        "horizon": 24,
        "split": TIMES,
        "cache_dir": str(tmp_path / "cache"),
    }
    return Table(str(changes.pop("path", tmp_path / "load.csv")), **{**arguments, **changes})


def three() -> pd.DataFrame:
    return pd.concat([readings("a"), readings("b", seed=1), readings("c", seed=2)], ignore_index=True)


def all_rows(dataset) -> dict[str, torch.Tensor]:
    return dataset.__getitems__(list(range(len(dataset))))


# --- what works --------------------------------------------------------------------------------------


def test_unsorted_rows_come_out_in_order(tmp_path):
    data = table(tmp_path, three().sample(frac=1, random_state=0), reading=HOURLY, public=True)
    data.setup()
    unit = data.privacy_unit()
    assert (unit.name, unit.num_units, unit.rows_per_unit) == ("user", 3, 4)
    assert (data.num_channels, data.num_covariates, data.steps_per_day) == (1, 6, 24)
    assert data.facts()["task"] == "forecast 24 steps"
    rows = data.train_dataset.__getitems__([1])["values"][..., 0]
    torch.testing.assert_close(rows - rows[:, :1], torch.arange(48.0).expand(4, 48))
    torch.testing.assert_close(rows[:, 0] % 1, torch.full((4,), 0.1))  # customer b and no other
    assert rows.max() < 7 * 24 + 0.2  # what is trained on ends before the test
    # Windows of the test begin with the last day of training and forecast from 8 January, midnight, on.
    test = all_rows(data.test_dataset)
    assert test["values"][:3, 24, 0].tolist() == [7 * 24.0, 8 * 24.0, 9 * 24.0]
    assert len(test["values"]) == 9
    np.testing.assert_allclose(test["covariates"][0, :, 0], np.sin(2 * np.pi * np.arange(48) / 24), atol=1e-6)
    assert "not in order" in data.report()


def test_made_up_units_look_like_a_train_batch_and_read_nothing(tmp_path):
    data = table(tmp_path, None, path="no/such.csv", reading=Reading(frequency="30min"))
    made_up = data.synthetic_units(3)
    assert data.steps_per_day == 48
    real = table(tmp_path, three())
    real.setup()
    batch = real.train_dataset.__getitems__([0, 1, 2])
    for field in batch:
        assert made_up[field].shape == batch[field].shape, field
        assert made_up[field].dtype == batch[field].dtype, field


def test_gaps_and_missing_cells_are_missing_and_different_lengths_fit(tmp_path):
    frame = pd.concat([readings("a"), readings("b", days=9, start="2024-01-02")]).reset_index(drop=True)
    frame["kwh"] = frame["kwh"].astype(str)
    frame.loc[200, "kwh"] = "NA"
    frame = frame.drop(index=range(180, 185))
    data = table(tmp_path, frame, public=True)
    data.setup()
    test = all_rows(data.test_dataset)
    hours = set(range(7 * 24 - 24, 10 * 24))
    seen = test["values"][test["observed"]].round().int().tolist()
    assert hours - set(seen) == set()  # b has them all
    a = all_rows(data.test_dataset)["observed"][:3].any(dim=0)  # three windows of a
    assert (~test["observed"][:3]).sum() == 2 * 6  # each lost hour is in a horizon and in a context
    assert a.all()
    report = data.report()
    assert "5 steps without a row, of 1 customers" in report
    assert "kwh 1.32 %" in report  # 6 of 456
    assert report.startswith("nonprivate")


@pytest.mark.parametrize(("rule", "value"), [("first", 30.0), ("mean", 31.0)])
def test_duplicates_follow_the_rule(tmp_path, rule, value):
    frame = pd.concat([three(), three().iloc[[30]].assign(kwh=32.0)])
    data = table(tmp_path, frame, reading=Reading(duplicates=rule), unit="window")
    data.setup()
    start = next(i for i in range(len(data.train_dataset)) if data.train_dataset.locate(i) == (0, 10))
    assert data.train_dataset[start]["values"][:24, 0].tolist() == [*range(10, 30), value, 31, 32, 33]
    assert "duplicates         1 readings" in data.report()


def test_a_mean_of_duplicates_leaves_out_missing_ones(tmp_path):
    frame = pd.concat([three(), three().iloc[[30, 30]].assign(kwh=[np.nan, 33.0])])
    data = table(tmp_path, frame, reading=Reading(duplicates="mean"), unit="window")
    data.setup()
    assert data.train_dataset[0]["values"][30, 0] == pytest.approx(31.5)


def moved(frame: pd.DataFrame, *, before: str) -> pd.DataFrame:
    """The same table with other readings before a stamp."""
    changed = frame.copy()
    changed.loc[changed["time"] < pd.Timestamp(before), "kwh"] += 1000.0
    return changed


@pytest.mark.parametrize(
    ("split", "horizons"),
    [
        (TIMES, 6),  # of 9: a day of three is context alone
        (ByTime(val_from="2024-01-06", test_from="2024-01-08"), 9),  # nobody trained on the day before
        (ByCustomerAndTime(customers=ByCustomer(val_share=0, test_share=0.5), times=TIMES), None),
    ],
)
@pytest.mark.parametrize("task", [None, PointImputation(ratio=0.5)])
def test_nothing_that_a_test_sees_is_a_row_that_was_trained_on(tmp_path, split, horizons, task):
    trained_until = str(getattr(split, "val_from", None) or "2024-01-08")
    frames = [three(), moved(three(), before=trained_until)]
    if horizons is None:  # whole customers: only train customers' rows move
        train = frames[0]["meter"].map(split.customers.part) == "train"
        assert 0 < train.sum() < len(train)
        frames[1].loc[~train, "kwh"] = frames[0].loc[~train, "kwh"]
    seen = []
    for number, frame in enumerate(frames):
        (tmp_path / f"{number}").mkdir()
        data = table(tmp_path / f"{number}", frame, split=split, task=task)
        data.setup()
        assert horizons is None or len(data.test_dataset) == horizons
        assert (data.train_dataset.__getitems__([0])["values"] > 900).any() == bool(number)
        seen.append([all_rows(data.test_dataset), data.metric_mean, data.metric_std])
    for field in seen[0][0]:
        assert torch.equal(seen[0][0][field], seen[1][0][field]), field
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[0][2], seen[1][2])


def test_errors_are_standardised_by_train_rows_of_a_public_table_alone(tmp_path):
    """The planted fault, allowed on the user's word: the published error tells the train rows' variance."""
    frame = three()
    train = frame["kwh"][frame["time"] < pd.Timestamp("2024-01-08")].to_numpy()
    data = table(tmp_path, frame, public=True)
    assert float(data.metric_std) == pytest.approx(train.std(), rel=1e-5)
    own = table(tmp_path, frame)
    own.setup()
    scored = all_rows(own.test_dataset)["values"][:, 24:].numpy()
    assert float(own.metric_std) == pytest.approx(scored.std(), rel=1e-5)


def test_a_constant_series_trains_and_is_reported(tmp_path):
    frame = three()
    frame.loc[frame["meter"] == "b", "kwh"] = 2.0
    data = table(tmp_path, frame)
    data.setup()
    assert "constant series    1: b" in data.report()
    assert (data.train_dataset.__getitems__([1])["values"] == 2).all()
    assert torch.isfinite(data.metric_std).all()


def test_short_series_are_dropped_on_request_and_counted(tmp_path):
    frame = pd.concat([three(), readings("d", days=1)])
    data = table(tmp_path, frame, short="drop", reading=HOURLY)
    assert data.privacy_unit().num_units == 3
    assert data.num_dropped == 1


def test_wide_equals_long(tmp_path):
    frame = three()
    frame.loc[5, "kwh"] = np.nan
    wide = frame.pivot(index="time", columns="meter", values="kwh").reset_index()
    wide.to_parquet(tmp_path / "wide.parquet")
    long = table(tmp_path, frame)
    other = table(
        tmp_path, None, path=tmp_path / "wide.parquet", layout=Wide(time_column="time", value_name="kwh")
    )
    long.setup()
    other.setup()
    assert long.channel_names == other.channel_names == ["kwh"]
    expected, got = all_rows(long.test_dataset), all_rows(other.test_dataset)
    for field in expected:
        assert torch.equal(expected[field], got[field]), field
    assert long.report().splitlines()[5:] == other.report().splitlines()[5:]


def test_a_wide_csv_of_several_files_with_shared_covariates(tmp_path):
    (tmp_path / "parts").mkdir()
    stamps = pd.date_range("2024-01-01", periods=240, freq="h")
    frame = pd.DataFrame({"time": stamps, "x": np.arange(240.0), "y": 2.0, "celsius": 15.0})
    frame.loc[:9, "y"] = np.nan  # y begins ten hours later
    frame[:100].to_csv(tmp_path / "parts" / "1.csv", index=False)
    frame[100:].to_csv(tmp_path / "parts" / "2.csv", index=False)
    covariates = Covariates(numeric={"celsius": (-15, 35)})
    layout = Wide(time_column="time", id_columns=["x", "y"], covariates=covariates)
    data = table(tmp_path, None, path=tmp_path / "parts" / "*.csv", layout=layout, unit="window")
    data.setup()
    assert data.num_covariates == 7
    assert data.train_dataset[0]["covariates"][:, 6] == pytest.approx(0.2)
    assert {data.train_dataset.locate(i)[1] for i in range(len(data.train_dataset))} >= {0, 10}
    first = min(
        start
        for series, start in map(data.train_dataset.locate, range(len(data.train_dataset)))
        if series == 1
    )
    assert first == 10


def test_covariates_are_scaled_by_public_bounds_and_one_hot(tmp_path):
    frame = three().assign(celsius=60.0, kind=["home"] * 240 + ["shop"] * 240 + [""] * 240)
    frame.loc[10, "celsius"] = np.nan
    covariates = Covariates(numeric={"celsius": (0, 40)}, categorical={"kind": ["shop", "home"]})
    layout = Long(id_column="meter", time_column="time", target_columns=["kwh"], covariates=covariates)
    data = table(tmp_path, frame, layout=layout, unit="window")
    data.setup()
    assert data.num_covariates == 9
    rows = {data.train_dataset.locate(i): i for i in range(len(data.train_dataset))}
    own = [data.train_dataset[rows[series, 0]]["covariates"][10, 6:].tolist() for series in range(3)]
    assert own == [[1, 0, 1], [1, 1, 0], [1, 0, 0]]  # 60 °C is clipped to 40; no kind is no category
    assert "719 clipped to their bounds, 241 filled" in data.report()


def test_time_zones(tmp_path):
    # 31 March 2024 has 23 hours in Berlin; the same instants with offsets, in UTC and in local time.
    utc = pd.date_range("2024-03-28", periods=24 * 8, freq="h", tz="UTC")
    local = utc.tz_convert("Europe/Berlin")
    frame = pd.DataFrame({"meter": "a", "time": utc, "kwh": np.arange(len(utc))})
    options = {"split": ByTime(test_from="2024-04-02"), "unit": "window"}
    batches = []
    for stamps in (
        local.strftime("%Y-%m-%dT%H:%M:%S%z"),
        utc.strftime("%Y-%m-%d %H:%M:%SZ"),
        local.tz_localize(None),
    ):
        data = table(
            tmp_path, frame.assign(time=stamps), reading=Reading(time_zone="Europe/Berlin"), **options
        )
        data.setup()
        assert "gaps               0 steps" in data.report()
        batches.append(all_rows(data.test_dataset))
    for batch in batches[1:]:
        for field in batch:
            assert torch.equal(batches[0][field], batch[field]), field
    # Local midnight of 2 April is 22:00 UTC on the first, and the calendar is local.
    hours = torch.atan2(batches[0]["covariates"][0, :, 0], batches[0]["covariates"][0, :, 1])
    step = int(batches[0]["values"][0, 24, 0])
    shown = local[step].hour
    assert np.isclose((hours[24].item() * 24 / (2 * np.pi)) % 24, shown, atol=1e-3)
    daily = local.tz_localize(None).normalize().unique()
    days = pd.DataFrame({"meter": "a", "time": daily, "kwh": 1.0})
    data = table(
        tmp_path,
        days,
        reading=Reading(time_zone="Europe/Berlin"),
        context_length=2,
        horizon=1,
        split=ByTime(test_from="2024-04-03"),
    )
    assert data.steps_per_day == 1
    data.setup()
    assert "gaps               0 steps" in data.report()


def test_months_are_a_frequency(tmp_path):
    stamps = pd.date_range("2000-01-01", periods=60, freq="ME")
    frame = pd.DataFrame({"meter": "a", "time": stamps, "kwh": np.arange(60.0)})
    data = table(tmp_path, frame, context_length=6, horizon=3, split=ByTime(test_from="2003-06-01"))
    data.setup()
    assert "1 month(s)" in data.report()
    assert "gaps               0 steps" in data.report()
    assert data.test_dataset[0]["values"][6, 0] >= 41


@pytest.mark.parametrize("text", ["30min", "h", "15s", "D", "W", "MS", "QS", "YE"])
def test_a_frequency_counts_its_own_steps(text):
    stamps = pd.date_range("2024-01-01", periods=30, freq=text)
    nanoseconds = stamps.as_unit("ns").asi8
    frequency = Frequency.parse(text)
    assert np.diff(frequency.numbers(nanoseconds)).tolist() == [1] * 29
    phase = frequency.phases(nanoseconds)
    assert len(set(phase.tolist())) == 1
    found, share = Frequency.infer(nanoseconds, np.zeros(30))
    assert share == 1
    assert (found.nanoseconds, found.months) == (frequency.nanoseconds, frequency.months)


def test_decimal_commas_and_formats(tmp_path):
    text = "meter;time;kwh\n"
    for hour in range(240):
        stamp = pd.Timestamp("2024-01-01") + pd.Timedelta(hours=hour)
        text += f"a;{stamp:%d.%m.%Y %H:%M};{hour},5\n"
    (tmp_path / "load.csv").write_text("\ufeff" + text + "\n", encoding="utf-8")
    reading = Reading(delimiter=";", decimal=",", time_format="%d.%m.%Y %H:%M", frequency="h")
    data = table(tmp_path, None, reading=reading, unit="window")
    data.setup()
    assert data.train_dataset[0]["values"][3, 0] == 3.5


# --- splits ------------------------------------------------------------------------------------------


def test_customers_are_drawn_by_name_with_the_given_odds():
    split = ByCustomer(val_share=0.2, test_share=0.3, seed=4)
    names = [f"meter-{number}" for number in range(2000)]
    parts = {name: split.part(name) for name in names}
    counts = pd.Series(parts).value_counts(normalize=True)
    assert counts["test"] == pytest.approx(0.3, abs=0.05)
    assert counts["val"] == pytest.approx(0.2, abs=0.05)
    assert any(ByCustomer(val_share=0.2, test_share=0.3, seed=5).part(name) != parts[name] for name in names)


def test_customers_and_time_together(tmp_path):
    frame = pd.concat([readings(f"c{number}", seed=number % 10) for number in range(30)])
    split = ByCustomerAndTime(customers=ByCustomer(val_share=0, test_share=0.4), times=TIMES)
    data = table(tmp_path, frame, split=split, unit="window")
    data.setup()
    assert data.val_dataset is None
    assert data.val_dataloader() == []
    assert all_rows(data.train_dataset)["values"].max() < 7 * 24 + 1
    assert all_rows(data.test_dataset)["values"][:, 24:].min() >= 7 * 24
    train = len({data.train_dataset.locate(i)[0] for i in range(len(data.train_dataset))})
    test = len({data.test_dataset.locate(i)[0] for i in range(len(data.test_dataset))})
    assert train + test == 30


def test_disjoint_windows_share_no_step_and_do_not_move(tmp_path):
    data = table(tmp_path, three(), unit="disjoint", reading=HOURLY)
    unit = data.privacy_unit()
    assert (unit.name, unit.windows_per_event) == ("window", 1)
    steps = all_rows(data.train_dataset)["values"].flatten()
    assert len(steps.unique()) == len(steps)
    # An earlier first reading of one customer moves no window, it can only add one.
    before = set(all_rows(data.train_dataset)["values"][:, 0, 0].tolist())
    earlier = readings("a", days=1, start="2023-12-31")
    again = table(tmp_path, pd.concat([earlier.tail(5), three()]), unit="disjoint")
    again.setup()
    assert before <= set(all_rows(again.train_dataset)["values"][:, 0, 0].tolist())


def test_the_event_bound_is_met_by_real_windows(tmp_path):
    data = table(tmp_path, three(), unit="window", train_stride=7, reading=HOURLY)
    bound = data.privacy_unit().windows_per_event
    assert bound == 7  # ⌈48 / 7⌉
    values = (all_rows(data.train_dataset)["values"].flatten() * 10).round().int()
    assert int(torch.bincount(values).max()) == bound


def test_a_task_masks_training_afresh_and_tests_the_same(tmp_path):
    data = table(tmp_path, three(), task=PointImputation(0.5))
    data.setup()
    assert "impute" in data.facts()["task"]
    first, second = (data.test_dataset.__getitems__([4, 2])["target"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first[1], data.test_dataset[2]["target"])
    assert torch.equal(
        data.test_dataset[-1]["target"], data.test_dataset[len(data.test_dataset) - 1]["target"]
    )
    first, second = (data.train_dataset.__getitems__([0])["target"] for _ in range(2))
    assert not torch.equal(first, second)


# --- what stops, and what it says --------------------------------------------------------------------


def edited(number: int, line: str) -> str:
    lines = three().to_csv(index=False).splitlines()
    return "\n".join([*lines[: number - 1], line, *lines[number - 1 :]]) + "\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            edited(7, "a,2024-02-01 00:00:00,n/m"),
            [
                "load.csv, line 7, column 'kwh' holds a text of 3 char",
                "begins with a letter",
                "missing_values",
            ],
        ),
        (
            edited(7, 'a,2024-02-01 00:00:00,"1,5"'),
            ["line 7", "a text of 3 characters that begins with a digit", "reading.decimal"],
        ),
        (edited(9, "a,2024-02-01 00:00:00,inf"), ["line 9, column 'kwh' holds a text of 3", "finite"]),
        (edited(9, "a,2024-02-01 00:00:00,1e39"), ["line 9, column 'kwh' holds a text of 4", "finite"]),
        (
            edited(9, "a,2024-01-01 00:00:00,3"),
            ["line 9: its customer has a second reading", "'first' or 'mean'"],
        ),
        (edited(9, "a,01/02/2024,3"), ["line 9, column 'time' holds a text of 10", "time_format"]),
        (edited(9, "a,,3"), ["line 9, column 'time' holds an empty text", "stamp"]),
        (
            edited(9, "a,2024-01-01 00:30:00,3"),
            ["line 9", "between the steps", "0 days 01"],
        ),
        (edited(9, "a,2024-02-01 00:00:00Z,3"), ["without an offset", "reading.time_zone"]),
        (
            edited(9, "a,2204-01-01 00:00:00,3"),
            ["customer number 1 ", "too few readings", "a stamp or reading.frequency"],
        ),
        (edited(9, ",2024-02-01 00:00:00,3"), ["line 9, column 'meter' is empty", "customer"]),
        (edited(9, "a,2024-02-01 00:00:00"), ["line 9 has 2 cells", "names 3", "reading.delimiter"]),
        (edited(9, "d,2024-02-01 00:00:00,3"), ["customer number 4 ", "0 train steps", "'drop'"]),
        ("", ["is empty", "first line"]),
        ("meter,time,kwh\n", ["no customer has two stamps"]),
        ("meter,time,kwh,kwh\n", ["one name for its columns 3 and 4"]),
        ("meter,time,kw\n", ["no column 'kwh'", "it has 3 columns"]),
        ("meter;time;kwh\na;b;c\n", ["no column 'meter'", "it has 1 columns"]),
    ],
)
def test_odd_files_are_refused_by_place_and_kind(tmp_path, content, words):
    (tmp_path / "load.csv").write_text(content)
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        table(tmp_path, None).setup()
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    if "'drop'" not in words:  # that table is sound, the window is too long for it
        assert list((tmp_path / "cache").glob("*")) + list((tmp_path / "cache").glob(".*")) == []


def test_lines_are_counted_as_an_editor_does(tmp_path):
    lines = three().to_csv(index=False).splitlines()
    (tmp_path / "load.csv").write_text("\r\n".join([*lines[:4], "", "", *lines[4:8], "a,2025-01-01,x", ""]))
    with pytest.raises(
        ValueError, match="line 11, column 'kwh' holds a text of 1 character that begins with a letter"
    ):
        table(tmp_path, None).setup()


def test_a_line_far_into_a_large_file_is_found(tmp_path):
    frame = pd.concat([readings(f"meter-number-{n}", days=1500) for n in range(6)])
    text = frame.to_csv(index=False) + "meter-number-1,2024-01-01 00:00:00,oops\n"
    (tmp_path / "load.csv").write_text(text)
    assert len(text) > 8 << 20  # more than one block
    with pytest.raises(
        ValueError,
        match=f"line {text.count(chr(10))}, column 'kwh' holds a text of 4 characters that",
    ):
        table(tmp_path, None).setup()


def test_latin_1_is_refused(tmp_path):
    content = three().assign(meter="Müller").to_csv(index=False)
    (tmp_path / "load.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        table(tmp_path, None).setup()


def test_a_stamp_that_the_zone_has_twice_is_refused(tmp_path):
    frame = readings("a", start="2024-10-26", days=3)
    with pytest.raises(ValueError, match=r"line 28, .*holds a stamp that Europe/Berlin has twice"):
        table(tmp_path, frame, reading=Reading(time_zone="Europe/Berlin")).setup()


def test_an_unknown_category_is_refused(tmp_path):
    layout = Long(
        id_column="meter",
        time_column="time",
        target_columns=["kwh"],
        covariates=Covariates(categorical={"kind": ["home"]}),
    )
    frame = three().assign(kind=["home"] * 719 + ["farm"])
    with pytest.raises(
        ValueError,
        match=r"line 721, column 'kind' holds a text of 4 characters .*, which is not among",
    ):
        table(tmp_path, frame, layout=layout).setup()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": " "}, ["Table.name is missing", "ledger"]),
        ({"short": "skip"}, ["Table.short is 'skip'", "error, drop"]),
        ({"unit": "person"}, ["unit is 'person'", "user, window, disjoint"]),
        ({"eval_stride": 0}, ["Table.eval_stride is 0"]),
        ({"reading": Reading(frequency="fortnight")}, ["reading.frequency is 'fortnight'"]),
        ({"path": "no/such.csv"}, ["no/such.csv", "pattern"]),
        ({"path": ROOT / "README.md"}, ["'.md'", ".csv or a .parquet"]),
        ({"split": ByCustomer(test_share=0.0)}, ["no test part"]),
        ({"split": ByTime(test_from="2030-01-01")}, ["no test window"]),
        ({"split": ByTime(test_from="2024-01-01")}, ["customer number 1 has 0 train steps"]),
        ({"split": ByTime(test_from="2024-01-01"), "short": "drop"}, ["no customer with a train window"]),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        table(tmp_path, three(), **changes).setup()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Covariates(numeric={"celsius": None}), ["no bounds", "without looking at the data", "no ε"]),
        (lambda: Covariates(numeric={"celsius": (3, 3)}), ["'celsius'", "lower is 3"]),
        (lambda: Covariates(categorical={"kind": []}), ["'kind'", "public"]),
        (lambda: Reading(decimal=";"), ["reading.decimal is ';'"]),
        (lambda: Reading(duplicates="last"), ["reading.duplicates is 'last'"]),
        (lambda: Reading(time_zone="Berlin"), ["'Berlin'", "Europe/Berlin"]),
        (lambda: ByTime(test_from="soon"), ["test_from is 'soon'"]),
        (lambda: ByTime(val_from="2024-02-01", test_from="2024-01-01"), ["before test_from"]),
        (lambda: ByCustomer(test_share=1.0), ["test_share=1.0"]),
        (lambda: Long(id_column="a", time_column="a", target_columns=["b"]), ["'a' twice"]),
        (lambda: Frequency.parse("fortnight"), ["reading.frequency is 'fortnight'"]),
        (lambda: Frequency.parse("-1h"), ["reading.frequency is '-1h'"]),
        (lambda: Frequency.parse("B"), ["reading.frequency is 'B'"]),
    ],
)
def test_bad_options_are_refused(make, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        make()
    for word in words:
        assert word in str(error.value)


# --- the cache ---------------------------------------------------------------------------------------


def test_the_cache_is_the_users_own_and_follows_the_content(tmp_path):
    old = os.umask(0)
    try:
        data = table(tmp_path, three())
        data.setup()
    finally:
        os.umask(old)
    cache = tmp_path / "cache"
    (folder,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.name == data.fingerprint
    stamp = (folder / "cells.npy").stat().st_mtime_ns
    moved = tmp_path / "moved.csv"
    moved.write_bytes((tmp_path / "load.csv").read_bytes())
    table(tmp_path, None, path=moved, horizon=12).setup()
    assert [entry.name for entry in cache.iterdir()] == [folder.name]
    assert (folder / "cells.npy").stat().st_mtime_ns == stamp
    table(tmp_path, three().assign(kwh=1.0)).setup()
    assert len(list(cache.iterdir())) == 2


MEMORY = """
import sys
from pathlib import Path
from lightning_dp.timeseries.data.own_table.split import ByCustomer
from lightning_dp.timeseries.data.own_table.layout import Wide
from lightning_dp.timeseries.data.table import Table

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024  # MB

def growth(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before

data = Table(
    sys.argv[1], name="big", layout=Wide(time_column="time"), context_length=168, horizon=24,
    cache_dir=sys.argv[2], batch_size=64, split=ByCustomer(val_share=0),
)
converting = growth(data.prepare_data)
loader = data.train_dataloader()
seen = 0

def train():
    global seen
    for _ in range(10):
        for batch in loader:
            seen += int(batch["observed"].sum())

print(converting, growth(train), seen)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure peak memory")
def test_a_table_larger_than_the_memory_it_may_have(tmp_path):
    """2,000 customers × 20,000 hours are 160 MB on disk; batches from all over it need next to nothing."""
    (tmp_path / "parts").mkdir()
    stamps = pd.date_range("2020-01-01", periods=20_000, freq="h")
    values = np.random.default_rng(0).random((500, 20_000), dtype=np.float32)
    for part in range(4):
        columns = {f"m{part}-{number}": row for number, row in enumerate(values)}
        parquet.write_table(
            pa.table({"time": stamps, **columns}),
            tmp_path / "parts" / f"{part}.parquet",
            row_group_size=4000,
            use_dictionary=False,
            compression="none",
        )
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "parts"), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    converting, training, seen = map(float, done.stdout.split()[-3:])
    (cells,) = tmp_path.glob("cache/*/cells.npy")
    assert cells.stat().st_size > 160e6
    assert seen > 10 * 1500 * 4 * 192  # 11 M readings from all over the file
    assert converting < 160
    assert training < 60


# --- the command line --------------------------------------------------------------------------------

FIT = [
    "fit",
    f"--config={ROOT / 'conf' / 'model' / 'dit_vanilla.yaml'}",
    "--data=lightning_dp.timeseries.data.table.Table",
    "--data.init_args.context_length=48",
    "--data.init_args.horizon=24",
    "--data.init_args.layout=lightning_dp.timeseries.data.own_table.layout.Long",
    "--data.init_args.layout.init_args.id_column=meter",
    "--data.init_args.layout.init_args.time_column=time",
    "--data.init_args.layout.init_args.target_columns=[kwh]",
    "--data.init_args.reading.frequency=h",
    "--data.init_args.split=lightning_dp.timeseries.data.own_table.split.ByTime",
    "--data.init_args.split.init_args.test_from=2024-01-08",
    "--model.init_args.num_samples=2",
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--run.wandb=disabled",
    "--privacy.noise_multiplier=2",
    "--privacy.delta=1e-2",
    "--privacy.expected_batch_size=2",
]


def fit(tmp_path: Path, *options: str) -> int:
    return main(
        [
            *FIT,
            f"--data.init_args.path={tmp_path / 'load.csv'}",
            f"--data.init_args.cache_dir={tmp_path / 'cache'}",
            f"--run.dir={tmp_path / 'run'}",
            *options,
        ]
    )


def test_three_odd_customers_train_from_the_command_line(tmp_path, capsys, ledger_path):
    """Gaps, a constant series, different lengths and one duplicate, with the rule for it."""
    frame = pd.concat([readings("a"), readings("b", days=9).assign(kwh=1.0), readings("c", days=8, seed=3)])
    frame = pd.concat([frame, frame.iloc[[4]]]).reset_index(drop=True).drop(index=range(60, 70))
    frame.to_csv(tmp_path / "load.csv", index=False)
    options = ["--data.init_args.name=three meters", "--data.init_args.reading.duplicates=first"]
    assert fit(tmp_path, *options) == 0
    out = capsys.readouterr().out
    assert "data report (nonprivate" in out
    assert "constant" not in out  # the report is for whoever opens it
    assert (tmp_path / "run" / "results.json").exists()
    assert ("three meters", "user") in Ledger(ledger_path).accounts()
    assert not list((tmp_path / "run").rglob("*.npy"))
    assert not list((tmp_path / "run").rglob("nonprivate_report*"))
    # The run folder has what was found without a name, for its owner alone.
    found = tmp_path / "run" / "nonprivate_data.json"
    assert stat.S_IMODE(found.stat().st_mode) == 0o600
    content = json.loads(found.read_text())
    assert (content["customers"], content["duplicates"], content["constant"]) == (3, 1, 1)
    assert "names" not in content
    assert "covered by no ε" in content["nonprivate"]
    assert "nonprivate: 639 rows of 3 customers" in out


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda text: text.replace(",5.0\n", ",five\n", 1),
            ["--data.init_args.name=m"],
            "line 7, column 'kwh' holds",
        ),
        (lambda text: text + text.splitlines()[9] + "\n", ["--data.init_args.name=m"], "second reading"),
        (lambda text: text + "d,2024-01-01 00:00:00,1\n", ["--data.init_args.name=m"], "customer number 4"),
        (lambda text: text, [], "Table.name is missing"),
        # Nothing is read for it: what is wrong in line 7 doesn't show.
        (
            lambda text: text.replace(",5.0\n", ",five\n", 1),
            ["--data.init_args.name=m", "--data.init_args.reading=null"],
            "Table.reading.frequency is not given",
        ),
    ],
    ids=["text", "duplicate", "short", "no name", "no frequency"],
)
def test_what_can_not_work_stops_before_training(tmp_path, capsys, ledger_path, change, options, message):
    (tmp_path / "load.csv").write_text(change(three().to_csv(index=False)))
    assert fit(tmp_path, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert len(error) < 600
    assert not (tmp_path / "run").exists()
    assert not ledger_path.exists()


def test_data_check_tells_what_is_in_a_table_and_writes_nothing(tmp_path, capsys, monkeypatch, ledger_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    three().to_csv(tmp_path / "load.csv", index=False)
    assert main(["data", "check", str(tmp_path / "load.csv")]) == 0
    out = capsys.readouterr().out
    assert "columns            id 'meter', time 'time', values ['kwh']" in out
    assert "customers          3: a, b, c" in out
    assert "100.00 % of neighbouring stamps" in out
    assert list((tmp_path / "cache" / "lightning_dp" / "tables").iterdir()) == []
    assert not ledger_path.exists()
    assert main(["data", "check", str(tmp_path / "load.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 720


def test_data_check_reads_as_a_configuration_says_and_lists_ids_that_are_nearly_alike(tmp_path, capsys):
    frame = pd.concat([readings("7"), readings("07")])
    frame.to_csv(tmp_path / "load.csv", index=False, sep=";")
    config = {
        "path": str(tmp_path / "load.csv"),
        "name": "meters",
        "context_length": 24,
        "horizon": 24,
        "cache_dir": str(tmp_path / "cache"),
        "reading": {"delimiter": ";", "frequency": "h"},
        "layout": {
            "class_path": "lightning_dp.timeseries.Long",
            "init_args": {"id_column": "meter", "time_column": "time", "target_columns": ["kwh"]},
        },
    }
    data = {"data": {"class_path": "lightning_dp.Table", "init_args": config}}
    (tmp_path / "my.yaml").write_text(json.dumps(data))
    assert main(["data", "check", str(tmp_path / "my.yaml")]) == 2
    told = capsys.readouterr()
    assert "nearly alike: '7' and '07'" in told.out
    assert "set reading.ids to 'number'" in told.err
    config["reading"]["ids"] = "text"
    (tmp_path / "my.yaml").write_text(json.dumps(data))
    assert main(["data", "check", str(tmp_path / "my.yaml")]) == 0
    assert "customers          2: 07, 7" in capsys.readouterr().out


def test_rows_of_the_future_are_kept_with_their_covariates(tmp_path):
    layout = Long(
        id_column="meter",
        time_column="time",
        target_columns=["kwh"],
        covariates=Covariates(numeric={"celsius": (0, 240)}),
    )
    frame = three().assign(celsius=lambda rows: rows["kwh"] // 1)
    frame.loc[(frame["meter"] == "a") & (frame["kwh"] >= 228), "kwh"] = np.nan  # twelve hours ahead
    data = table(tmp_path, frame, layout=layout)
    data.setup()
    a, b, _ = data.customers()
    assert (a.spelled, a.future_steps, b.future_steps) == ("a", 12, 0)
    assert (str(a.last_stamp), str(a.known_until)) == ("2024-01-10 11:00:00", "2024-01-10 23:00:00")
    store = data.whole_store()
    begin = torch.tensor([228])
    values, covariates = store.read(torch.tensor([0]), starts=begin, length=12)
    assert values.isnan().all()
    torch.testing.assert_close(covariates[0, :, 6], torch.arange(228.0, 240.0) / 120 - 1)
    assert "future rows        12 after the last reading of 1 customers" in data.report()


def test_readings_are_kept_as_they_were_written(tmp_path):
    frame = three()
    frame["kwh"] += 123456789.0 + frame["kwh"].round() / 2
    data = table(tmp_path, frame)
    data.setup()
    np.testing.assert_array_equal(data.whole_store().series(0), frame["kwh"][:240].to_numpy()[:, None])
    assert re.search(r"rounding           [1-9]\d* of 720 readings .*series' range", data.report())


@pytest.mark.parametrize(
    ("zone", "border", "words"),
    [
        ("", "2024-01-08T00:00Z", "leave its offset out"),
        ("Z", "2024-01-08", "write it with its offset"),
    ],
)
def test_a_border_and_stamps_have_an_offset_both_or_none(tmp_path, zone, border, words):
    frame = three()
    frame["time"] = frame["time"].astype(str) + zone
    with pytest.raises(ValueError, match=words):
        table(tmp_path, frame, split=ByTime(test_from=border)).setup()


def quarter_hourly(customer: str) -> pd.DataFrame:
    """More rows than the three others together, and a clock of its own."""
    stamps = pd.date_range("2024-01-01", periods=96 * 10, freq="15min")
    return pd.DataFrame({"meter": customer, "time": stamps, "kwh": 1.0})


def test_one_customer_sets_the_clock_of_all_where_it_is_inferred(tmp_path):
    """The fault that is planted below: without privacy it is allowed."""
    alone = table(tmp_path, three())
    assert alone.steps_per_day == 24
    joined = table(tmp_path, pd.concat([three(), quarter_hourly("d")]))
    joined.setup()
    assert joined.steps_per_day == 96
    assert joined.train_dataset.__getitems__([0])["observed"].float().mean() < 0.3  # of another customer


@pytest.mark.parametrize("extra", [True, False], ids=["another clock", "the same clock"])
def test_a_private_fit_is_told_the_clock(tmp_path, ledger_path, extra):
    """By the same sentence whatever the rows are, before one of them is read."""
    frame = pd.concat([three(), quarter_hourly("d")]) if extra else three()
    data = table(tmp_path, frame)
    privacy = DifferentialPrivacy(noise_multiplier=2, delta=1e-2, expected_batch_size=2)
    trainer = Trainer(max_steps=1, callbacks=[privacy], logger=False, default_root_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"Table\.reading\.frequency is not given") as error:
        trainer.fit(BoringModel(), datamodule=data)
    with pytest.raises(ValueError, match=r"Table\.reading\.frequency is not given") as again:
        table(tmp_path, None).privacy_unit()  # whoever asks for a unit means a private fit
    assert str(error.value) == str(again.value)
    assert not (tmp_path / "cache").exists()
    assert not ledger_path.exists()


def test_with_a_stated_clock_no_customer_moves_another(tmp_path):
    """Another clock, other dates, other categories: the first three customers' windows are what they were."""
    late = readings("d", days=200, start="2023-12-01").assign(kwh=7.0)
    batches = []
    for extra in ([], [late], [quarter_hourly("d").iloc[::4]], [late.assign(meter="0")]):
        data = table(tmp_path, pd.concat([three(), *extra]), reading=HOURLY, unit="disjoint")
        data.setup()
        assert data.steps_per_day == 24
        rows = all_rows(data.train_dataset)
        own = (rows["values"] > 7.5).any(dim=(1, 2)) | (rows["values"][:, 0, 0] < 1)
        batches.append({name: value[own] for name, value in rows.items()})
    for batch in batches[1:]:
        for field in batch:
            assert torch.equal(batch[field], batches[0][field]), field


def test_a_table_is_known_whatever_file_holds_it_and_as_it_grows(tmp_path):
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2024-01-01", periods=240, freq="h")
    frame = pd.DataFrame({"time": stamps, "a": rng.normal(size=240), "b": rng.normal(size=240)})
    found = []
    for number, (rows, write) in enumerate(
        ((240, pd.DataFrame.to_csv), (240, pd.DataFrame.to_parquet), (200, pd.DataFrame.to_csv))
    ):
        path = tmp_path / f"{number}{'.parquet' if write is pd.DataFrame.to_parquet else '.csv'}"
        write(frame[:rows], path, index=False)
        data = Table(
            str(path),
            name="load",
            layout=Wide(time_column="time", id_columns=["a", "b"]),
            context_length=12,
            horizon=12,
            reading=HOURLY,
            cache_dir=str(tmp_path / "cache"),
        )
        found.append(set(data.content_pieces()))
    assert found[0] == found[1] > found[2]
    assert len(found[2]) == 2 * (200 // 24)
