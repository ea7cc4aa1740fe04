"""The imputation frame and the baselines of gaps: by hand, by numpy, by the protocol's table."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_dp.timeseries.baselines import evaluate_baselines
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.bridge import Bridge, bridge, neighbours
from lightning_dp.timeseries.data.ett import ETT
from lightning_dp.timeseries.imputation_baselines import IMPUTATIONS
from lightning_dp.timeseries.masks import BlackoutImputation, PointImputation, SubSequenceImputation
from lightning_dp.timeseries.normalise import DayMean

torch.set_num_threads(1)

DATA = Path(os.environ.get("LIGHTNING_DP_DATA", ""))
needs_ett = pytest.mark.skipif(
    not os.environ.get("LIGHTNING_DP_DATA") or not (DATA / "ett" / "ETTh1.csv").exists(),
    reason="LIGHTNING_DP_DATA names no folder with ett/ETTh1.csv",
)
NAN = float("nan")


def gaps(values: list[float]) -> Batch:
    """One window of one channel; NaN = to be imputed, and poisoned."""
    known = torch.tensor(values)[None, :, None]
    return Batch(
        values=known.nan_to_num(1e9),
        observed=torch.ones_like(known, dtype=torch.bool),
        target=known.isnan(),
        covariates=torch.zeros(1, len(values), 0),
    )


def filled(name: str, values: list[float], *, steps_per_day: int = 2) -> list[float]:
    return IMPUTATIONS[name](gaps(values), steps_per_day=steps_per_day)[0, :, 0].tolist()


def test_lines_and_distances_equal_numpys_interpolation():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 30, 3, generator=generator)
    visible = torch.rand(20, 30, 3, generator=generator) < 0.3
    visible[0, :, 0] = False
    line, distance = bridge(torch.where(visible, values, NAN), visible)
    for window in range(20):
        for channel in range(3):
            known = visible[window, :, channel].nonzero().flatten().numpy()
            if not len(known):
                assert (line[window, :, channel] == 0).all()
                assert torch.isinf(distance[window, :, channel]).all()
                continue
            expected = np.interp(np.arange(30), known, values[window, known, channel].numpy())
            np.testing.assert_allclose(line[window, :, channel], expected, rtol=1e-5, atol=1e-5)
            nearest = np.abs(np.arange(30)[:, None] - known).min(axis=1)
            np.testing.assert_array_equal(distance[window, :, channel], nearest)


def test_neighbours_by_hand():
    visible = torch.tensor([0, 1, 0, 0, 1, 0]).bool()[None, :, None]
    before, after = neighbours(visible)
    assert before.flatten().tolist() == [-1, 1, 1, 1, 4, 4]
    assert after.flatten().tolist() == [1, 1, 4, 4, 4, 6]


def test_imputations_by_hand():
    assert filled("linear", [NAN, 1, NAN, NAN, 4, NAN]) == [1, 1, 2, 3, 4, 4]
    assert filled("last value carried", [NAN, 1, NAN, NAN, 4, NAN]) == [1, 1, 1, 1, 4, 4]
    assert filled("window mean", [NAN, 1, NAN, NAN, 4, NAN]) == [2.5, 1, 2.5, 2.5, 4, 2.5]
    # Days (1, 10), (?, 12), (3, ?): profile (2, 11), deviations −1 ? ? 1 → −1 / −1 … 1.
    line = filled("day profile + linear", [1, 10, NAN, 12, 3, NAN])
    assert line == pytest.approx([1, 10, 2 + 0, 12, 3, 11 + 1])


@pytest.mark.parametrize("name", IMPUTATIONS)
def test_what_is_hidden_has_no_influence_and_what_is_visible_stays(name):
    result = filled(name, [1, NAN, 3, 4, NAN, 6])
    assert [result[i] for i in (0, 2, 3, 5)] == [1, 3, 4, 6]
    assert all(abs(value) < 10 for value in result)
    assert filled(name, [NAN] * 4) == [0, 0, 0, 0]


def test_the_frame_is_the_line_near_neighbours_and_the_profile_far_away():
    values = torch.sin(torch.arange(96.0) * 2 * torch.pi / 24)[None, :, None] + 5
    visible = torch.ones(1, 96, 1, dtype=torch.bool)
    visible[:, 24:72] = False
    frame = Bridge(steps_per_day=24, reach=3).frame(torch.where(visible, values, NAN), visible)
    profile = DayMean(steps_per_day=24).frame(torch.where(visible, values, NAN), visible)
    line, _ = bridge(values, visible)
    assert torch.equal(frame.center[visible], profile.center[visible])
    assert torch.equal(frame.scale, profile.scale)
    # One step from its neighbour a hidden step is nine parts line and one part profile.
    expected = 0.9 * line[0, 24] + 0.1 * profile.center[0, 24]
    torch.testing.assert_close(frame.center[0, 24], expected)
    torch.testing.assert_close(frame.center[0, 48], profile.center[0, 48], atol=0.02, rtol=0)
    shape = (frame.center - frame.center[visible].mean()) / frame.scale
    torch.testing.assert_close(frame.profile, shape, atol=1e-4, rtol=0)


def test_an_impossible_reach_is_refused():
    with pytest.raises(ValueError, match="reach is 0"):
        Bridge(steps_per_day=24, reach=0)


# The protocol's masks are not at hand. Where a long gap begins in the day moves its errors a good deal, the
# last value's most; over all 2,857 windows our draw of blackouts gives 1.16, 1.28, .686 and .389.
PROTOCOL = {
    "point 12.5 %": (
        PointImputation(0.125),
        {"linear": (0.084, 0.184), "last value carried": (0.213, 0.276), "window mean": (0.647, 0.528)},
        0.05,
    ),
    "point 50 %": (
        PointImputation(0.5),
        {"linear": (0.166, 0.245), "last value carried": (0.419, 0.366), "window mean": (0.657, 0.531)},
        0.05,
    ),
    "sub-sequence 50 %": (
        SubSequenceImputation(0.5),
        {
            "linear": (1.10, 0.64),
            "last value carried": (1.25, 0.69),
            "window mean": (0.688, 0.544),
            "day profile + linear": (0.363, 0.381),
        },
        0.10,
    ),
    "blackout 50 %": (
        BlackoutImputation(0.5),
        {
            "linear": (1.22, 0.68),
            "last value carried": (1.49, 0.74),
            "window mean": (0.665, 0.538),
            "day profile + linear": (0.393, 0.397),
        },
        0.2,
    ),
}


@needs_ett
@pytest.mark.parametrize("name", PROTOCOL)
def test_the_protocols_table_on_etth1(name):
    task, bars, tolerance = PROTOCOL[name]
    # Every sixth window: neighbours tell nearly the same.
    data = ETT("ETTh1", context_length=72, horizon=24, batch_size=512, eval_stride=6, task=task)
    scores = evaluate_baselines(data)
    assert list(scores) == list(IMPUTATIONS)
    for baseline, (mse, mae) in bars.items():
        assert scores[baseline]["mse"] == pytest.approx(mse, rel=tolerance), baseline
        assert scores[baseline]["mae"] == pytest.approx(mae, rel=tolerance), baseline
