"""Windows, ETT, the household simulator and the privacy units they declare."""

import io
import os
import re
import time
import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from lightning_dp.privacy.units import PrivacyUnit, count_windows_per_event
from lightning_dp.timeseries.data import ett as ett_file
from lightning_dp.timeseries.data.calendar import calendar_features
from lightning_dp.timeseries.data.ett import ETT, ensure_file, read_ett_csv
from lightning_dp.timeseries.data.simulator import HouseholdLoad, simulate_household_load
from lightning_dp.timeseries.data.windows import UserWindowDataset, WindowDataset

torch.set_num_threads(1)

DATA = os.environ.get("LIGHTNING_DP_DATA")
needs_etth1 = pytest.mark.skipif(
    not DATA or not (Path(DATA) / "ett" / "ETTh1.csv").exists(),
    reason="LIGHTNING_DP_DATA names no folder with ett/ETTh1.csv",
)
FIELDS = ("values", "observed", "target", "covariates")
RNG = np.random.default_rng(0)


def make_series(*lengths: int, channels: int = 2) -> list[np.ndarray]:
    """Every value says where it is from: series·1000 + row + channel/10; every seventh is missing."""
    series = []
    for number, length in enumerate(lengths):
        array = number * 1000 + np.arange(length)[:, None] + np.arange(channels) / 10
        array[::7, 0] = np.nan
        series.append(array.astype(np.float32))
    return series


def make_covariates(length: int) -> np.ndarray:
    return np.linspace(-1, 1, length * 3, dtype=np.float32).reshape(length, 3)


# --- windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("stride", "first_row", "end_row"), [(1, 0, None), (3, 0, None), (2, 4, 19)])
def test_windows_are_slices_of_their_series(stride, first_row, end_row, shared):
    series = make_series(20, 31)
    covariates = make_covariates(31) if shared else [make_covariates(20), -make_covariates(31)]
    dataset = WindowDataset(
        series,
        covariates=covariates,
        context_length=5,
        horizon=3,
        stride=stride,
        first_row=first_row,
        end_row=end_row,
    )
    expected = [
        (number, start)
        for number, array in enumerate(series)
        for start in range(first_row, (len(array) if end_row is None else end_row) - 8 + 1, stride)
    ]
    assert [dataset.locate(index) for index in range(len(dataset))] == expected
    batch = dataset.__getitems__(list(range(len(dataset))))
    for row, (number, start) in enumerate(expected):
        raw = series[number][start : start + 8]
        known = covariates if shared else covariates[number]
        np.testing.assert_array_equal(batch["values"][row], np.nan_to_num(raw))
        np.testing.assert_array_equal(batch["observed"][row], ~np.isnan(raw))
        np.testing.assert_array_equal(batch["covariates"][row], known[start : start + 8])
        np.testing.assert_array_equal(batch["target"][row], [[False, False]] * 5 + [[True, True]] * 3)
    assert batch["values"].dtype == batch["covariates"].dtype == torch.float32
    assert batch["observed"].dtype == batch["target"].dtype == torch.bool


def test_single_items_collate_to_the_fast_batch():
    dataset = WindowDataset(
        make_series(30), covariates=make_covariates(30), context_length=4, horizon=2, stride=2
    )
    slow = WindowDataset.collate([dataset[index] for index in (3, 0, 11)])
    fast = WindowDataset.collate(dataset.__getitems__([3, 0, 11]))
    for field in FIELDS:
        assert torch.equal(slow[field], fast[field])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_an_empty_batch_has_the_right_shape():
    dataset = WindowDataset(make_series(30), covariates=make_covariates(30), context_length=4, horizon=2)
    batch = dataset.__getitems__([])
    assert batch["values"].shape == (0, 6, 2)
    assert batch["target"].shape == (0, 6, 2)
    assert batch["covariates"].shape == (0, 6, 3)


def test_the_data_given_is_neither_changed_nor_kept():
    series, covariates = make_series(30), make_covariates(30)
    before = series[0].copy()
    dataset = WindowDataset(series, covariates=covariates, context_length=4, horizon=2)
    np.testing.assert_array_equal(series[0], before)
    series[0][:] = 99
    covariates[:] = 0
    item = dataset[0]
    assert item["values"].max() < 99
    assert item["covariates"].min() == -1
    item["target"][:] = True  # a batch is the caller's to write to
    assert not dataset[0]["target"].all()


def test_a_loader_over_a_subset_of_windows_takes_the_fast_path():
    dataset = WindowDataset(make_series(40), covariates=make_covariates(40), context_length=4, horizon=2)
    loader = DataLoader(Subset(dataset, [5, 6, 7]), batch_size=2, collate_fn=WindowDataset.collate)
    starts = torch.cat([batch["values"][:, 0, 1] for batch in loader])
    assert starts.tolist() == pytest.approx([5.1, 6.1, 7.1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"series": [np.zeros((7, 2))]}, ["load.csv", "too short", "7 usable rows", "= 8"]),
        ({"series": make_series(20, 6)}, ["series 1", "too short", "6 usable rows"]),
        ({"end_row": 50}, ["load.csv", "20 rows", "row 50"]),
        ({"series": [np.array([["1", "x"]] * 20, dtype=object)]}, ["column 'b'", "row 0", "'x'", "number"]),
        ({"series": [np.full((20, 2), [1, np.nan])]}, ["column 'b'", "no value", "drop"]),
        ({"series": [np.full((20, 2), [np.inf, 1])]}, ["column 'a'", "row 0", "inf", "finite"]),
        ({"series": [np.zeros(20)]}, ["shape (20,)", "(time steps, channels)"]),
        ({"series": []}, ["no series"]),
        ({"series": [np.zeros((20, 2)), np.zeros((20, 3))]}, ["series 1", "3 channels"]),
        ({"covariates": make_covariates(5)}, ["covariates", "(5, 3)", "20 rows"]),
        ({"covariates": 3 * make_covariates(20)}, ["covariates", "[−1, 1]"]),
        ({"covariates": np.full((20, 1), np.nan)}, ["covariates", "missing"]),
        ({"covariates": [make_covariates(20)] * 2}, ["1 series", "2 arrays of covariates"]),
        ({"horizon": 0}, ["horizon is 0", "at least 1"]),
        ({"stride": -1}, ["stride is -1", "at least 1"]),
    ],
)
def test_bad_series_are_refused_in_words(change, words):
    arguments = {
        "series": make_series(20),
        "covariates": make_covariates(20),
        "context_length": 5,
        "horizon": 3,
        "channel_names": ["a", "b"],
        "source": "load.csv",
    } | change
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        WindowDataset(arguments.pop("series"), **arguments)
    for word in words:
        assert word in str(error.value)


def test_numbers_written_as_objects_are_numbers():
    series = np.array([[1, None], [2, 3.5]] * 5, dtype=object)
    series[series == None] = np.nan  # noqa: E711 - elementwise
    dataset = WindowDataset(series, covariates=make_covariates(10), context_length=2, horizon=1)
    assert dataset[0]["observed"].tolist() == [[True, False], [True, True], [True, False]]


def test_a_users_windows_are_consecutive_slices_of_that_user():
    dataset = UserWindowDataset(
        make_series(40, 25, 31),
        covariates=make_covariates(40),
        context_length=5,
        horizon=3,
        windows_per_user=6,
    )
    assert len(dataset) == 3
    batch = dataset.__getitems__([2, 0, 2])
    assert batch["values"].shape == (18, 8, 2)
    users = (batch["values"][:, 0, 1] // 1000).view(3, 6)
    assert users.tolist() == [[2.0] * 6, [0.0] * 6, [2.0] * 6]
    # Channel 1 has no gaps and counts rows, so a slice is its first value and the next seven.
    rows = batch["values"][:, :, 1]
    torch.testing.assert_close(rows, rows[:, :1] + torch.arange(8.0))
    # The shared covariates belong to the same rows of the calendar.
    starts = (rows[:, 0] % 1000).round().long()
    expected = torch.from_numpy(make_covariates(40))[starts]
    assert torch.equal(batch["covariates"][:, 0], expected)
    assert len(set(starts[:6].tolist())) > 1


def test_user_items_collate_to_flat_rows():
    dataset = UserWindowDataset(
        make_series(40, 25),
        covariates=make_covariates(40),
        context_length=5,
        horizon=3,
        windows_per_user=2,
    )
    assert dataset[1]["values"].shape == (2, 8, 2)
    assert dataset[-1]["values"][0, 0, 1] >= 1000
    for beyond in (2, -3):
        with pytest.raises(IndexError):
            dataset.__getitems__([0, beyond])
        with pytest.raises(IndexError):
            dataset[beyond]
    batch = UserWindowDataset.collate([dataset[0], dataset[1], dataset[1]])
    assert batch["values"].shape == (6, 8, 2)
    assert dataset.__getitems__([])["values"].shape == (0, 8, 2)


def test_a_users_starts_are_uniform_over_every_possible_start():
    dataset = UserWindowDataset(
        make_series(12), covariates=make_covariates(12), context_length=5, horizon=3, windows_per_user=5000
    )
    torch.manual_seed(0)
    counts = torch.bincount(dataset[0]["values"][:, 0, 1].long(), minlength=5)
    assert len(counts) == 5  # rows 0 … 4 and no other
    assert ((counts - 1000).abs() < 5 * 1000**0.5).all()


# --- privacy units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window_length", [1, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("event_length", [1, 2, 5])
def test_windows_per_event_is_the_largest_hit_count(window_length, stride, event_length):
    starts = range(0, 200, stride)
    hits = [
        sum(start < event + event_length and event < start + window_length for start in starts)
        for event in range(50, 120)
    ]
    bound = count_windows_per_event(window_length=window_length, stride=stride, event_length=event_length)
    assert max(hits) == bound


def test_hits_in_a_real_train_set_meet_the_declared_bound():
    dataset = WindowDataset(
        np.arange(100.0)[:, None], covariates=make_covariates(100), context_length=6, horizon=2, stride=3
    )
    rows = dataset.__getitems__(list(range(len(dataset))))["values"][:, :, 0].long()
    assert int(torch.bincount(rows.flatten()).max()) == count_windows_per_event(window_length=8, stride=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "person"),
        ("num_units", 0),
        ("rows_per_unit", 0),
        ("windows_per_event", 0),
        ("description", ""),
    ],
)
def test_an_impossible_unit_is_refused(field, value):
    arguments = {"name": "user", "num_units": 3, "description": "one household"} | {field: value}
    with pytest.raises(ValueError, match=f"PrivacyUnit.{field}"):
        PrivacyUnit(**arguments)


# --- calendar ----------------------------------------------------------------------------------------


def test_calendar_features_mark_hour_day_and_year():
    stamps = pd.DatetimeIndex(
        ["2017-01-01 00:00", "2017-01-01 06:00", "2017-01-01 06:15", "2017-01-02 18:00"]
    )
    features = calendar_features(stamps)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[0, :2], [0, 1], atol=1e-7)
    np.testing.assert_allclose(features[1, :2], [1, 0], atol=1e-7)
    quarter_past = 2 * np.pi * 6.25 / 24
    np.testing.assert_allclose(features[2, :2], [np.sin(quarter_past), np.cos(quarter_past)], atol=1e-6)
    np.testing.assert_allclose(features[3, 2:4], [0, 1], atol=1e-7)  # Monday
    np.testing.assert_allclose(features[0, 4:], [0, 1], atol=1e-7)  # 1 January
    assert np.abs(features).max() <= 1


# --- ETT ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def etth1_lines() -> list[str]:
    """A file with ETTh1's columns and number of rows, its values made up."""
    stamps = pd.date_range("2016-07-01", periods=17_420, freq="h").strftime("%Y-%m-%d %H:%M:%S")
    numbers = np.random.default_rng(0).normal(size=(17_420, 7)).round(3)
    header = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"
    return [header, *(f"{s},{','.join(map(str, row))}" for s, row in zip(stamps, numbers, strict=True))]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def write_ett(folder: Path, lines: list[str]) -> str:
    (folder / "ett").mkdir()
    (folder / "ett" / "ETTh1.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def accept_any_content(monkeypatch):
    monkeypatch.setattr(ett_file, "_check_content", lambda content, *, name, where: None)


def test_ett_borders_and_units(tmp_path, etth1_lines, monkeypatch):
    accept_any_content(monkeypatch)
    data = ETT("ETTh1", data_dir=write_ett(tmp_path, etth1_lines), channels=["OT", "HUFL"])
    data.prepare_data()
    data.setup("fit")
    raw = np.array([line.split(",")[1:] for line in etth1_lines[1:]], dtype=float)[:, [6, 0]]
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (8521, 2857, 2857)
    first_val, last_val = data.val_dataset[0], data.val_dataset[2856]
    np.testing.assert_allclose(first_val["values"], raw[8640 - 96 : 8640 + 24], rtol=1e-6)
    np.testing.assert_allclose(last_val["values"], raw[11520 - 120 : 11520], rtol=1e-6)
    np.testing.assert_allclose(data.test_dataset[2856]["values"], raw[14400 - 120 : 14400], rtol=1e-6)
    np.testing.assert_allclose(data.train_dataset[8520]["values"], raw[8640 - 120 : 8640], rtol=1e-6)
    np.testing.assert_allclose(data.metric_mean, raw[:8640].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(data.metric_std, raw[:8640].std(axis=0), rtol=1e-6)
    assert (data.num_channels, data.num_covariates, data.steps_per_day) == (2, 6, 24)
    assert ETT("ETTm2").steps_per_day == 96
    batches = list(data.test_dataloader())
    assert sum(len(batch["values"]) for batch in batches) == 2857
    unit = data.privacy_unit()
    assert (unit.name, unit.num_units, unit.rows_per_unit, unit.windows_per_event) == ("window", 8521, 1, 120)
    disjoint = ETT("ETTh1", data_dir=str(tmp_path), train_stride=120, eval_stride=24)
    unit = disjoint.privacy_unit()
    assert (unit.num_units, unit.windows_per_event) == (72, 1)
    assert len(disjoint.test_dataset) == 120


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0].replace("LUFL", "LUFF"), *lines[1:]], ["no column 'LUFL'", "LUFF"]),
        (lambda lines: [*lines[:5], lines[5].rsplit(",", 1)[0] + ",", *lines[6:]], ["line 6", "'OT'", "''"]),
        (lambda lines: [*lines[:5], lines[5].rsplit(",", 1)[0] + ",NaN", *lines[6:]], ["line 6", "'NaN'"]),
        (lambda lines: [*lines[:9], lines[9].rsplit(",", 1)[0] + ",off", *lines[10:]], ["line 10", "'off'"]),
        (
            lambda lines: [*lines[:3], "yesterday" + lines[3][19:], *lines[4:]],
            ["line 4", "'date'", "yesterday"],
        ),
        (lambda lines: lines[:5000], ["4999 rows", "truncated"]),
        (lambda lines: lines, ["checksum", "published ETTh1.csv", "delete it"]),
    ],
)
def test_a_damaged_ett_file_is_refused_in_words(tmp_path, etth1_lines, no_network, change, words):
    data = ETT("ETTh1", data_dir=write_ett(tmp_path, change(etth1_lines)))
    data.prepare_data()
    with pytest.raises(ValueError, match=r"ETTh1\.csv") as error:
        data.setup("fit")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "ETTh3"}, ["ETT.name", "'ETTh3'", "ETTh1"]),
        ({"horizon": 0}, ["ETT.horizon is 0", "at least 1"]),
        ({"channels": ["OT", "XY"]}, ["ETT.channels", "XY", "HUFL"]),
        ({"channels": ["OT", "OT"]}, ["ETT.channels", "at most once"]),
        ({"channels": []}, ["ETT.channels"]),
    ],
)
def test_bad_ett_arguments_are_refused_before_any_file_is_read(arguments, words):
    with pytest.raises(ValueError, match="ETT") as error:
        ETT(**arguments)
    for word in words:
        assert word in str(error.value)


def test_a_context_beyond_the_start_of_the_data_is_refused(tmp_path, etth1_lines, monkeypatch):
    accept_any_content(monkeypatch)
    with pytest.raises(ValueError, match="context_length"):
        ETT("ETTh1", data_dir=write_ett(tmp_path, etth1_lines), context_length=9000).setup()


def test_a_missing_file_without_network_says_what_and_where(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="is missing") as error:
        ETT("ETTm1").prepare_data()
    for word in (str(tmp_path / "ett" / "ETTm1.csv"), "https://", "no network in tests", "LIGHTNING_DP_DATA"):
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_checked_and_written_whole(tmp_path, monkeypatch):
    content = b"date,HUFL\n"
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(content))
    with pytest.raises(ValueError, match="checksum"):
        ensure_file("ETTh2", folder=tmp_path)
    assert list(tmp_path.rglob("*")) == []
    # `git hash-object` of these ten bytes, so the second kind of checksum is checked from outside.
    blob = "git-blob:fe91841a58754ece459de5db2dd06d669cf82938"
    monkeypatch.setitem(ett_file._CHECKSUMS, "ETTh2", blob)
    path = ensure_file("ETTh2", folder=tmp_path)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["ETTh2.csv"]


def test_windows_line_ends_do_not_change_the_checksum(monkeypatch):
    monkeypatch.setitem(
        ett_file._CHECKSUMS,
        "ETTh2",  # sha256sum of "a\nb\n"
        "sha256:911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2",
    )
    ett_file._check_content(b"a\r\nb\r\n", name="ETTh2", where="x")


@needs_etth1
def test_the_real_etth1():
    data = ETT("ETTh1")
    data.setup()
    values, stamps = read_ett_csv(Path(DATA) / "ett" / "ETTh1.csv", channels=["OT"])
    assert values.shape == (17_420, 1)
    assert str(stamps[-1]) == "2018-06-26 19:00:00"
    batch = next(iter(data.train_dataloader()))
    assert batch["values"].shape == (64, 120, 7)
    assert batch["observed"].all()
    assert data.metric_mean[-1].item() == pytest.approx(17.128, abs=1e-3)


@needs_etth1
def test_building_batches_is_no_bottleneck():
    data = ETT("ETTh1")
    data.setup()
    batches = len(data.train_dataloader())
    start = time.process_time()
    assert sum(1 for _ in data.train_dataloader()) == batches
    # About .25 ms a batch of 64 on an idle core; the bound leaves room for a busy machine.
    assert (time.process_time() - start) / batches < 5e-3


# --- simulator ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def load():
    return simulate_household_load(400, num_days=180, seed=0)


def test_simulation_is_fast_and_repeatable(load):
    start = time.perf_counter()
    again = simulate_household_load(400, num_days=180, seed=0)
    assert time.perf_counter() - start < 2
    np.testing.assert_array_equal(load.kwh, again.kwh)
    assert not np.array_equal(
        load.kwh, simulate_household_load(400, num_days=180, seed=1).kwh, equal_nan=True
    )


def test_simulated_load_looks_like_load(load):
    kwh = load.kwh
    assert kwh.shape == (400, 4320)
    assert np.nanmin(kwh) > 0
    assert np.nanmax(kwh) == 12  # the fuse
    assert 0.01 < np.isnan(kwh).mean() < 0.03
    assert np.isnan(kwh).mean(axis=1).max() < 0.5
    # The same hour of yesterday says more than half a day ago, as in a real load.
    filled = np.nan_to_num(kwh, nan=float(np.nanmean(kwh)))
    centred = filled - filled.mean(axis=1, keepdims=True)

    def autocorrelation(lag: int) -> float:
        products = (centred[:, lag:] * centred[:, :-lag]).mean(axis=1)
        return float((products / (centred**2).mean(axis=1)).mean())

    assert autocorrelation(24) > autocorrelation(12) + 0.2
    assert autocorrelation(168) > autocorrelation(12)
    # Bursts: far out of the body; and colder days take more.
    assert np.nanquantile(kwh, 0.999) > 10 * np.nanmedian(kwh)
    by_day = np.nanmean(kwh, axis=0).reshape(-1, 24).mean(axis=1)
    assert np.corrcoef(by_day, load.temperature.reshape(-1, 24).mean(axis=1))[0, 1] < -0.7
    profile = np.nanmean(kwh, axis=0).reshape(-1, 24).mean(axis=0)
    assert 17 <= profile.argmax() <= 22
    assert profile.argmin() <= 5


def test_households_are_split_without_overlap():
    # One window is a whole series, so the items are the households.
    data = HouseholdLoad(20, num_days=5, context_length=96, horizon=24, windows_per_user=1)
    data.setup()
    splits = [data.train_dataset, data.val_dataset, data.test_dataset]
    assert [len(split) for split in splits] == [16, 2, 2]
    rows = torch.cat([split.__getitems__(list(range(len(split))))["values"][..., 0] for split in splits])
    simulated = np.nan_to_num(simulate_household_load(20, num_days=5, seed=0).kwh)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, simulated.tolist()))


def test_household_batches_and_unit():
    data = HouseholdLoad(30, num_days=10, windows_per_user=3, batch_size=5)
    data.setup("fit")
    unit = data.privacy_unit()
    assert (unit.name, unit.num_units, unit.rows_per_unit) == ("user", len(data.train_dataset), 3)
    assert unit.windows_per_event is None
    batch = next(iter(data.train_dataloader()))
    assert batch["values"].shape == (15, 120, 1)
    assert batch["covariates"].shape == (15, 120, data.num_covariates)
    assert batch["covariates"].abs().max() <= 1
    assert (batch["values"][~batch["observed"]] == 0).all()
    assert data.steps_per_day == 24
    assert data.metric_mean.shape == data.metric_std.shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_households": 5}, ["num_households is 5", "at least 10"]),
        ({"num_days": 3}, ["num_days is 3 (72 steps)", "120 steps", "simulate more days"]),
        ({"windows_per_user": 0}, ["windows_per_user is 0"]),
    ],
)
def test_bad_simulator_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match="HouseholdLoad") as error:
        HouseholdLoad(**arguments)
    for word in words:
        assert word in str(error.value)


class Probe(LightningModule):
    """Fits one number, to show that an ordinary Trainer takes the data module."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))
        self.rows = 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return (batch["values"] - self.level).square().mean()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.rows += len(batch["values"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_takes_the_data_module():
    data, model = HouseholdLoad(20, num_days=8, eval_stride=24), Probe()
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert model.level.item() > 0
    assert model.rows == len(data.test_dataset)
