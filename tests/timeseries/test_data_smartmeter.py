"""622 households: the protocol, its bars, and what one train item is."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_dp.timeseries.baselines import evaluate_baselines
from lightning_dp.timeseries.data.smartmeter import SmartMeter

DATA = os.environ.get("LIGHTNING_DP_DATA")
needs_readings = pytest.mark.skipif(
    not DATA or not (Path(DATA) / "smartmeter" / "edrp622_halfhourly.npz").exists(),
    reason="LIGHTNING_DP_DATA names no folder with smartmeter/edrp622_halfhourly.npz",
)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> str:
    """A file of the same form: a reading says which household it is of, and when."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "smartmeter").mkdir()
    kwh = np.arange(622)[None, :] + np.arange(4416)[:, None] / 4416
    stamps = pd.date_range("2009-03-01", periods=4416, freq="30min").strftime("%Y-%m-%dT%H:%M")
    np.savez(
        folder / "smartmeter" / "edrp622_halfhourly.npz",
        kwh=kwh.astype(np.float32),
        timestamp=np.array(stamps, dtype=str),
    )
    return str(folder)


def households(dataset) -> set[int]:
    # Constant to half a day within a window and unique per household.
    items = dataset.__getitems__(list(range(len(dataset))))
    return set(items["values"][:, 0, 0].floor().int().tolist())


def test_households_are_split_as_in_the_protocol(made_up):
    data = SmartMeter(data_dir=made_up, val_households=20)
    data.setup()
    order = np.random.default_rng(0).permutation(622).tolist()
    assert households(data.train_dataset) == set(order[:478])
    assert households(data.val_dataset) == set(order[478:498])
    assert households(data.test_dataset) == set(order[498:])
    assert len(data.test_dataset) == 124 * 29  # every third day that has seven before it
    assert [data.test_dataset.locate(i) for i in (0, 1, 29)] == [(0, 0), (0, 144), (1, 0)]
    without = SmartMeter(data_dir=made_up)
    without.setup()
    assert without.val_dataloader() == []
    assert len(without.train_dataset) == 498


def test_a_user_fills_rows_and_forecasts_may_begin_at_midnight(made_up):
    data = SmartMeter(data_dir=made_up, context_days=2, windows_per_user=3, train_stride=48)
    unit = data.privacy_unit()
    assert (unit.name, unit.num_units, unit.rows_per_unit) == ("user", 498, 3)
    batch = data.train_dataset.__getitems__([5, 7])
    assert batch["values"].shape == (6, 144, 1)
    assert batch["values"][:, 0, 0].floor().view(3 - 1, 3).unique(dim=1).shape == (2, 1)
    midnight = batch["covariates"][:, 96, :2]
    torch.testing.assert_close(midnight, torch.tensor([[0.0, 1.0]]).expand(6, 2))


@pytest.mark.parametrize(
    ("arguments", "count", "bound"),
    [
        ({"unit": "window", "train_stride": 24}, 498 * 169, 16),  # ⌈384 / 24⌉
        ({"unit": "disjoint"}, 498 * 11, 1),
    ],
)
def test_windows_say_how_often_one_half_hour_is_used(made_up, arguments, count, bound):
    data = SmartMeter(data_dir=made_up, **arguments)
    unit = data.privacy_unit()
    assert (unit.name, unit.num_units, unit.rows_per_unit) == ("window", count, 1)
    assert unit.windows_per_event == bound
    mine = [i for i in range(count // 498 * 3) if data.train_dataset.locate(i)[0] == 1]
    starts = np.array([data.train_dataset.locate(i)[1] for i in mine])
    hits = np.bincount((starts[:, None] + np.arange(384)).ravel(), minlength=4416)
    assert hits.max() == bound


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"context_days": -1}, "context_days is -1"),
        ({"context_days": 92}, "4464 half-hours and its series 4416"),
        ({"val_households": 498}, "val_households is 498"),
        ({"unit": "household"}, "unit is 'household'"),
        ({"windows_per_user": 0}, "windows_per_user is 0"),
        ({"data_dir": "/nowhere"}, "/nowhere/smartmeter/edrp622_halfhourly.npz is missing"),
    ],
)
def test_mistakes_are_refused(made_up, arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        SmartMeter(**{"data_dir": made_up, **arguments}).setup()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "smartmeter").mkdir()
    path = tmp_path / "smartmeter" / "edrp622_halfhourly.npz"
    np.savez(path, kwh=np.zeros((10, 3)))
    with pytest.raises(ValueError, match="no array 'timestamp'"):
        SmartMeter(data_dir=str(tmp_path)).setup()
    np.savez(path, kwh=np.zeros((10, 3)), timestamp=np.array(["2009-03-01"] * 10))
    with pytest.raises(ValueError, match=re.escape("shape (10, 3)")):
        SmartMeter(data_dir=str(tmp_path)).setup()


@needs_readings
@pytest.mark.parametrize(
    ("days", "bars"), [(7, (0.754, 0.441, 0.404)), (2, (0.992, 0.490, 0.530))], ids=["7 days", "2 days"]
)
def test_the_mean_of_days_meets_the_published_bars(days, bars):
    data = SmartMeter(context_days=days, batch_size=256)
    scores = evaluate_baselines(data)["mean of days"]
    # The bars are in deviations of the 498 train households, which no result of ours is.
    change = float(data.metric_std) / 0.27704
    in_bars = [scores["mse"] * change**2, scores["mae"] * change, scores["crps"]]
    assert in_bars == pytest.approx(bars, abs=6e-4)


@needs_readings
def test_the_constants_of_the_metric_are_those_of_the_test_households():
    data = SmartMeter(windows_per_user=1)
    kwh = np.load(Path(DATA) / "smartmeter" / "edrp622_halfhourly.npz")["kwh"]
    test = kwh[:, np.random.default_rng(0).permutation(622)[498:]].astype(np.float64)
    days = np.concatenate([test[start + 336 : start + 384] for start in range(0, 4416 - 383, 144)])
    assert float(data.metric_mean) == pytest.approx(np.nanmean(days), abs=1e-6)
    assert float(data.metric_std) == pytest.approx(np.nanstd(days), abs=1e-6)
