"""Baselines: by hand on small windows, and against the published bars on real data."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dp.timeseries.baselines import (
    BASELINES,
    evaluate_baselines,
    last_value,
    mean_of_days,
    sample_days,
    seasonal_naive,
)
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.ett import ETT
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.data.windows import WindowDataset

torch.set_num_threads(1)

DATA = Path(os.environ.get("LIGHTNING_DP_DATA", ""))
NAN = float("nan")


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not os.environ.get("LIGHTNING_DP_DATA") or not (DATA / name).exists(),
        reason=f"LIGHTNING_DP_DATA names no folder with {name}",
    )


def make_batch(context: list[float], *, horizon: int) -> Batch:
    """One window of one channel; NaN = missing. The future holds NaN: who reads it gives NaN."""
    known = torch.tensor(context)
    values = torch.cat([known, torch.full((horizon,), NAN)])[None, :, None]
    target = torch.arange(len(context) + horizon)[None, :, None] >= len(context)
    return Batch(
        values=torch.where(target, values, values.nan_to_num()),
        observed=~values.isnan() | target,
        target=target,
        covariates=torch.zeros(1, len(context) + horizon, 0),
    )


def future(forecast: Tensor, *, horizon: int) -> list[float]:
    return forecast[0, -horizon:, 0].tolist()


def test_forecasts_by_hand():
    # Two steps a day, an odd step in front of the two whole days.
    batch = make_batch([100.0, 1.0, 2.0, 3.0, 6.0], horizon=3)
    assert future(seasonal_naive(batch, steps_per_day=2), horizon=3) == [3, 6, 3]
    assert future(mean_of_days(batch, steps_per_day=2), horizon=3) == [2, 4, 2]
    assert future(mean_of_days(batch, steps_per_day=2, num_days=1), horizon=3) == [3, 6, 3]
    assert future(last_value(batch, steps_per_day=2), horizon=3) == [6, 6, 6]
    samples = sample_days(batch, steps_per_day=2)
    assert samples.shape == (1, 2, 8, 1)
    assert samples[0, :, -3:, 0].tolist() == [[1, 2, 1], [3, 6, 3]]


def test_missing_observations_are_left_out():
    # The first step of the day was last seen on day 1, the second never, the third on both days.
    batch = make_batch([1.0, NAN, 4.0, NAN, NAN, 8.0], horizon=3)
    mean = 13 / 3  # of everything observed
    assert future(seasonal_naive(batch, steps_per_day=3), horizon=3) == pytest.approx([1, mean, 8])
    assert future(mean_of_days(batch, steps_per_day=3), horizon=3) == pytest.approx([1, mean, 6])
    assert future(last_value(make_batch([1.0, 5.0, NAN], horizon=2), steps_per_day=3), horizon=2) == [5, 5]
    samples = sample_days(batch, steps_per_day=3)[0, :, -3:, 0]
    torch.testing.assert_close(samples, torch.tensor([[1, mean, 4], [1, mean, 8]]))


@pytest.mark.parametrize("forecast", [*BASELINES.values(), sample_days])
def test_a_channel_without_any_observation_gets_zero(forecast):
    result = forecast(make_batch([NAN] * 4, horizon=2), steps_per_day=2)
    assert (result == 0).all()


@pytest.mark.parametrize("forecast", BASELINES.values())
def test_a_periodic_series_is_forecast_exactly_and_the_context_kept(forecast):
    day = torch.tensor([1.0, 4.0, 2.0])
    batch = make_batch(day.repeat(4).tolist() if forecast is not last_value else [2.0] * 12, horizon=6)
    result = forecast(batch, steps_per_day=3)
    expected = day.repeat(6) if forecast is not last_value else torch.full((18,), 2.0)
    torch.testing.assert_close(result[0, :, 0], expected)


def test_channels_and_rows_do_not_mix():
    a, b = make_batch([1.0, 2.0, 3.0, 4.0], horizon=2), make_batch([NAN, 20.0, 30.0, NAN], horizon=2)
    together: Batch = {key: torch.cat([torch.cat([a[key], b[key]], 2)] * 2) for key in a}  # type: ignore
    for forecast in BASELINES.values():
        result = forecast(together, steps_per_day=2)
        for row in range(2):
            torch.testing.assert_close(result[row, :, :1], forecast(a, steps_per_day=2)[0])
            torch.testing.assert_close(result[row, :, 1:], forecast(b, steps_per_day=2)[0])


def test_what_baselines_cannot_do_is_refused():
    batch = make_batch([1.0, 2.0, 3.0], horizon=2)
    with pytest.raises(ValueError, match="one day of 4 steps doesn't fit into a context of 3"):
        seasonal_naive(batch, steps_per_day=4)
    with pytest.raises(ValueError, match="num_days = 2 of 2 steps doesn't fit"):
        mean_of_days(batch, steps_per_day=2, num_days=2)
    gap = batch | {"target": batch["target"].roll(1, dims=1)}
    with pytest.raises(ValueError, match="not a forecast"):
        last_value(gap, steps_per_day=2)


def test_the_simulator_can_be_evaluated():
    data = HouseholdLoad(20, num_days=20)
    scores = evaluate_baselines(data)
    assert list(scores) == ["seasonal naive", "mean of days", "last value"]
    assert scores["mean of days"]["crps"] < scores["seasonal naive"]["crps"] < scores["last value"]["crps"]
    # Independent: the mean of days straight from the loader's tensors.
    errors = []
    for batch in data.test_dataloader():
        raw = np.where(batch["observed"], batch["values"], np.nan)
        days = raw[:, :96, 0].reshape(-1, 4, 24)
        whole = ~np.isnan(days).any(axis=(1, 2)) & ~np.isnan(raw[:, 96:, 0]).any(axis=1)
        errors.append((days.mean(axis=1) - raw[:, 96:, 0])[whole])
    rough = float((np.concatenate(errors) ** 2).mean() / data.metric_std[0] ** 2)
    assert scores["mean of days"]["mse"] == pytest.approx(rough, rel=0.3)  # but for windows with gaps


ETTH1_BARS = {
    24: {
        "seasonal naive": {"mse": 0.424, "mae": 0.389},
        "mean of days": {"mse": 0.339, "mae": 0.362, "crps": 0.227},
        "last value": {"mse": 1.222, "mae": 0.671},
    },
    96: {
        "seasonal naive": {"mse": 0.512, "mae": 0.433},
        "mean of days": {"mse": 0.406, "mae": 0.396, "crps": 0.261},
        "last value": {"mse": 1.294, "mae": 0.713},
    },
}


@needs("ett/ETTh1.csv")
@pytest.mark.parametrize("horizon", [24, 96])
def test_the_bars_on_etth1(horizon):
    scores = evaluate_baselines(ETT("ETTh1", context_length=96, horizon=horizon, batch_size=512))
    for name, bar in ETTH1_BARS[horizon].items():
        for metric, value in bar.items():
            assert round(scores[name][metric], 3) == value, (name, metric)


class SmartMeters:
    """The protocol's test split of the half-hourly meters: 124 households, one day for every third."""

    steps_per_day = 48
    metric_std = torch.tensor([0.27704])

    def __init__(self, *, context_days: int) -> None:
        self.context_days = context_days

    def setup(self, stage: str | None = None) -> None:
        kwh = np.load(DATA / "smartmeter" / "edrp622_halfhourly.npz")["kwh"]
        test = np.random.default_rng(0).permutation(622)[498:]
        self.dataset = WindowDataset(
            [kwh[:, [household]] for household in test],
            covariates=np.zeros((len(kwh), 0), dtype=np.float32),
            context_length=48 * self.context_days,
            horizon=48,
            stride=3 * 48,
        )

    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.dataset, batch_size=512, collate_fn=WindowDataset.collate)


@needs("smartmeter/edrp622_halfhourly.npz")
@pytest.mark.parametrize(
    ("context_days", "bar"),
    [
        (2, {"mse": 0.992, "rmse": 0.996, "mae": 0.490, "r2": 0.134, "crps": 0.530}),
        (7, {"mse": 0.754, "rmse": 0.868, "mae": 0.441, "r2": 0.325, "crps": 0.404}),
    ],
)
def test_the_bars_on_smart_meters(context_days, bar):
    score = evaluate_baselines(SmartMeters(context_days=context_days))["mean of days"]
    assert {metric: round(value, 3) for metric, value in score.items()} == bar
