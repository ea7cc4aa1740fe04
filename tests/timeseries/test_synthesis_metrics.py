"""Distances between real and synthetic windows, against closed forms and other libraries."""

import math

import numpy as np
import pytest
from scipy import signal, stats
from sklearn.linear_model import RidgeCV

from lightning_dp.timeseries.synthesis_metrics import (
    autocorrelation,
    autocorrelation_distance,
    discriminative_score,
    histogram_distance,
    marginal_distance,
    nearest_neighbours,
    predictive_score,
)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def autoregression(rng, windows: int, *, coefficient: float, length: int = 24) -> np.ndarray:
    noise = rng.normal(size=(windows, length + 200, 1))
    return signal.lfilter([1], [1, -coefficient], noise, axis=1)[:, 200:]


def test_marginal_distance_of_shifted_and_scaled_gaussians(rng):
    real = rng.normal(size=(2000, 10, 2)) * [1, 50] + [0, 300]
    shifted = rng.normal(size=(2000, 10, 2)) * [1, 50] + [0.5, 300 + 0.5 * 50]
    wider = rng.normal(size=(2000, 10, 2)) * [2, 100] + [0, 300]
    assert marginal_distance(real, real) == 0
    assert marginal_distance(real, shifted) == pytest.approx(0.5, abs=0.03)
    # W1 between N(0, 1) and N(0, 4) is E|Z| = √(2/π).
    assert marginal_distance(real, wider) == pytest.approx(math.sqrt(2 / math.pi), abs=0.03)


def test_histogram_distance_of_uniforms(rng):
    real, moved = rng.uniform(size=(2000, 10, 1)), rng.uniform(size=(2000, 10, 1)) + 0.25
    assert histogram_distance(real, real) == 0
    # A quarter of the mass is in other bins; what lies beyond is heaped on the last one.
    assert histogram_distance(real, moved) == pytest.approx(0.25, abs=0.03)
    assert histogram_distance(real, real + 10) == pytest.approx(1, abs=0.03)


def test_autocorrelation_equals_scipys_correlation(rng):
    windows = rng.normal(size=(5, 20, 2)).cumsum(axis=1)
    windows[2, :, 0] = 7.0  # a constant has none, and is left out
    expected = np.zeros((20, 2))
    for channel in range(2):
        curves = []
        for window in windows[:, :, channel]:
            centred = window - window.mean()
            if np.allclose(centred, 0):
                continue
            curves.append(signal.correlate(centred, centred)[19:] / (centred**2).sum())
        expected[:, channel] = np.mean(curves, axis=0)
    np.testing.assert_allclose(autocorrelation(windows), expected, atol=1e-12)


def test_autocorrelation_distance_tells_rough_from_smooth(rng):
    smooth, again, rough = (
        autoregression(rng, 3000, coefficient=coefficient) for coefficient in (0.9, 0.9, 0.0)
    )
    assert autocorrelation_distance(smooth, again) < 0.01
    assert autocorrelation_distance(smooth, rough) > 0.15
    assert math.isnan(autocorrelation_distance(np.ones((3, 8, 1)), np.ones((3, 8, 1))))


def test_discriminative_score_of_gaussians_is_the_bayes_accuracy(rng):
    """Two unit Gaussians a distance d apart in one value: the best judge is right with Φ(d/2)."""
    real, same, apart = rng.normal(size=(3, 700, 4, 1))
    apart[:, 2] += 2.0
    assert discriminative_score(real, same) < 0.06
    best = stats.norm.cdf(1.0) - 0.5  # .341
    assert best - 0.06 < discriminative_score(real, apart) < best + 0.03


def test_discriminative_score_does_not_learn_the_class_sizes(rng):
    assert discriminative_score(rng.normal(size=(200, 4, 1)), rng.normal(size=(1500, 4, 1))) < 0.1


def test_predictive_score_of_an_autoregression_is_its_noise(rng):
    real, synthetic, noise = (
        autoregression(rng, 3000, coefficient=coefficient, length=4) for coefficient in (0.8, 0.8, 0.0)
    )
    # One step ahead: MAE of N(0, 1) noise, over the stationary deviation 1 / √(1 − .64).
    expected = math.sqrt(2 / math.pi) * 0.6
    assert predictive_score(synthetic, real) == pytest.approx(expected, rel=0.03)
    assert predictive_score(noise, real) == pytest.approx(math.sqrt(2 / math.pi), rel=0.06)
    # The same by hand.
    inputs, answers = synthetic[:, :3, 0], synthetic[:, 3, 0]
    mean, std = real.mean(), real.std()
    fitted = RidgeCV((0.1, 1.0, 10.0, 100.0, 1000.0)).fit((inputs - mean) / std, (answers - mean) / std)
    error = np.abs(fitted.predict((real[:, :3, 0] - mean) / std) - (real[:, 3, 0] - mean) / std).mean()
    assert predictive_score(synthetic, real) == pytest.approx(error)


def test_copies_of_train_windows_are_found(rng):
    train, held_out, fresh = (rng.normal(size=(number, 6, 2)) * [1, 9] for number in (400, 200, 200))
    copied = fresh.copy()
    copied[:100] = train[:100] + 1e-3
    honest = nearest_neighbours(fresh, train=train, held_out=held_out)
    caught = nearest_neighbours(copied, train=train, held_out=held_out)
    assert honest.copies < 0.05
    assert caught.copies == pytest.approx(0.5, abs=0.03)
    assert caught.synthetic < honest.synthetic
    scale = train.std(axis=(0, 1))
    gaps = (fresh[:, None] - train[None]) / scale  # (M, N, L, C)
    brute = np.sqrt(np.square(gaps).mean(axis=(2, 3))).min(axis=1)
    assert honest.synthetic == pytest.approx(np.median(brute))


def test_windows_that_cannot_be_compared_are_refused(rng):
    windows = rng.normal(size=(10, 6, 2))
    with pytest.raises(ValueError, match="same length and channels"):
        marginal_distance(windows, windows[:, :5])
    with pytest.raises(ValueError, match="no windows"):
        marginal_distance(windows, windows[:0])
    with pytest.raises(ValueError, match="NaN"):
        marginal_distance(windows, np.where(windows > 1, np.nan, windows))
    with pytest.raises(ValueError, match="too few to judge"):
        discriminative_score(windows[:2], windows)
    with pytest.raises(ValueError, match="at least 2 steps"):
        predictive_score(windows[:, :1], windows[:, :1])
