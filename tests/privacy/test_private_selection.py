"""The bound for the best of a random number of runs, against exact distributions of that best."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import norm

from lightning_dp.cli import main
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.private_selection import NumberOfRuns, epsilon_of_best, least_factor

SHAPES = [-0.5, 0.0, 1.0, 3.0]


def generating(number: NumberOfRuns, x: np.ndarray) -> np.ndarray:
    """f(x) = E[x^K], in closed form (Papernot & Steinke, Def. 1)."""
    eta, left = number.shape, 1 - (1 - number.parameter) * x
    if eta == 0:
        return np.log(left) / math.log(number.parameter)
    return (left**-eta - 1) / (number.parameter**-eta - 1)


def slope(number: NumberOfRuns, x: np.ndarray) -> np.ndarray:
    """f'(x), with f'(1) = E[K]."""
    left = (1 - (1 - number.parameter) * x) / number.parameter
    return number.mean * left ** (-number.shape - 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [1.5, 10.0, 300.0])
def test_the_number_of_runs_is_what_it_says(shape: float, mean: float) -> None:
    number = NumberOfRuns.of_mean(mean, shape=shape)
    assert number.mean == pytest.approx(mean, rel=1e-9)
    chances = number.chances(200_000)
    runs = np.arange(1, 200_001)
    assert chances.sum() == pytest.approx(1, abs=2e-3 if shape < 0 else 1e-6)
    assert (chances * runs).sum() == pytest.approx(mean, rel=0.3 if shape < 0 else 1e-4)
    for x in (0.0, 0.4, 0.9):
        assert (chances * x**runs).sum() == pytest.approx(float(generating(number, np.array(x))), rel=1e-6)


@pytest.mark.parametrize("shape", [0.0, 1.0])
def test_numbers_are_drawn_as_often_as_they_should_be(shape: float) -> None:
    number = NumberOfRuns.of_mean(8.0, shape=shape)
    rng = np.random.default_rng(0)
    drawn = np.array([number.draw(rng) for _ in range(20_000)])
    for k, chance in enumerate(number.chances(6), start=1):
        assert (drawn == k).mean() == pytest.approx(chance, abs=5 * math.sqrt(chance / 20_000))
    assert drawn.mean() == pytest.approx(8.0, abs=5 * drawn.std() / math.sqrt(20_000))


@pytest.mark.parametrize(("shape", "mean"), [(-1.0, 5.0), (0.0, 1.0), (math.nan, 5.0), (0.0, math.inf)])
def test_impossible_numbers_are_refused(shape: float, mean: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        NumberOfRuns.of_mean(mean, shape=shape)


def exact_delta(epsilon: float, *, sigma: float, number: NumberOfRuns, best: int, with_unit: bool) -> float:
    """Of runs that release N(0 or 1, σ²) and are scored by it, by numerical integration."""
    y, step = np.linspace(-12 * sigma, 12 * sigma + 1, 40_001, retstep=True)

    def density(mean: float) -> np.ndarray:
        below = norm.cdf(y, mean, sigma) if best > 0 else norm.sf(y, mean, sigma)
        return norm.pdf(y, mean, sigma) * slope(number, below)

    one, other = (density(1), density(0)) if with_unit else (density(0), density(1))
    return float(np.maximum(one - math.exp(epsilon) * other, 0).sum() * step)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma", "mean"), [(0.8, 4.0), (2.0, 100.0), (6.0, 30.0)])
def test_the_best_gaussian_is_never_worse_than_the_bound(shape: float, sigma: float, mean: float) -> None:
    number, event = NumberOfRuns.of_mean(mean, shape=shape), GaussianEvent(noise_multiplier=sigma)
    nearest = math.inf
    for delta in (1e-2, 1e-4, 1e-6):
        bound = epsilon_of_best([event], delta, number=number)
        for best in (1, -1):
            for with_unit in (True, False):
                there = exact_delta(bound, sigma=sigma, number=number, best=best, with_unit=with_unit)
                assert there <= delta * (1 + 1e-6)
                nearest = min(nearest, delta / max(there, 1e-300))
    # One that forgets what the number of runs gives away would be passed: ε of one run at δ / E[K].
    alone = epsilon_pld([event], 1e-2 / mean)
    least = max(
        exact_delta(alone * 0.2, sigma=sigma, number=number, best=best, with_unit=unit)
        for best in (1, -1)
        for unit in (True, False)
    )
    assert least > 1e-2


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    mean=st.floats(1.2, 500),
    weights=st.lists(st.tuples(st.floats(0.001, 1), st.floats(-2, 2)), min_size=2, max_size=8),
    epsilon=st.floats(0, 3),
)
def test_any_two_neighbours_of_few_outcomes_keep_the_bound(shape, mean, weights, epsilon) -> None:
    """Outcomes in the order of their scores, exact chances; a neighbour's are e^(−2 … 2) times as likely."""
    number = NumberOfRuns.of_mean(mean, shape=shape)
    one = np.array([weight for weight, _ in weights])
    other = one * np.exp([tilt for _, tilt in weights])
    pair = (one / one.sum(), other / other.sum())

    def divergence(p: np.ndarray, q: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.maximum(p - np.exp(np.atleast_1d(at))[:, None] * q, 0).sum(axis=1)

    def delta_at(at: np.ndarray) -> np.ndarray:
        return np.maximum(divergence(*pair, at), divergence(*pair[::-1], at))

    def best(chances: np.ndarray) -> np.ndarray:
        reached = np.minimum(np.concatenate([[0.0], np.cumsum(chances)]), 1.0)
        return np.diff(generating(number, reached))

    factor = least_factor(delta_at, number=number, most=4.0)
    bound = number.mean * float(delta_at(np.array([epsilon]))[0])
    chosen = [best(chances) for chances in pair]
    for p, q in (chosen, chosen[::-1]):
        assert float(divergence(p, q, np.array([epsilon + factor]))[0]) <= bound * (1 + 1e-9) + 1e-12


def test_a_hundred_trials_cost_less_than_two_and_a_half() -> None:
    """At ε = 4 and 10 of one run of 400 sampled steps."""
    for sigma in (1.6, 0.9):
        events = [GaussianEvent(noise_multiplier=sigma, sampling_rate=0.06, steps=400)]
        one = epsilon_pld(events, 1e-5)
        best = epsilon_of_best(events, 1e-5, number=NumberOfRuns.of_mean(100))
        assert one < best <= 2.5 * one


def test_what_no_grid_holds_is_infinite() -> None:
    events = [GaussianEvent(noise_multiplier=1e-5, sampling_rate=0.5, steps=1000)]
    assert epsilon_of_best(events, 1e-5, number=NumberOfRuns.of_mean(10)) == math.inf


def test_plan_says_what_a_search_costs(capsys) -> None:
    command = [
        "plan",
        "--noise_multiplier",
        "2",
        "--delta",
        "1e-5",
        "--units",
        "1000",
        "--batch",
        "50",
        "--steps",
        "100",
    ]
    assert main([*command, "--best_of", "100", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    event = GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=100)
    expected = epsilon_of_best([event], 1e-5, number=NumberOfRuns.of_mean(100))
    assert facts["best_of"] == {"mean": 100.0, "shape": 0.0, "epsilon": pytest.approx(expected)}
    assert main([*command, "--best_of", "100"]) == 0
    assert f"best of 100 runs on average: ε = {expected:.6g} per record" in capsys.readouterr().out
    assert main([*command, "--best_of", "1"]) == 2
    assert "The mean number of runs is 1.0; it must be a number above 1." in capsys.readouterr().err
