"""Choices of the k largest sums: their exact distributions on neighbours against what is charged for them."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import norm

from lightning_dp.privacy import top_k
from lightning_dp.privacy.accounting import (
    Event,
    ExponentialEvent,
    GaussianEvent,
    StabilityTestEvent,
    epsilon_pld,
    epsilon_rdp,
    event_from_dict,
    event_to_dict,
    rdp_curve,
)
from lightning_dp.privacy.ledger import filter_epsilon
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.release import VectorSum
from lightning_dp.privacy.secure_noise import MARGIN
from lightning_dp.privacy.top_k import ExponentialTopK, GapTestedTopK
from lightning_dp.privacy.units import PrivacyUnit

DELTAS = (1e-7, 1e-5, 1e-3, 0.01, 0.05, 0.2)


def exponential(sigma: float = 1.0, *, number: int = 2, dimension: int = 4) -> ExponentialTopK:
    return ExponentialTopK(noise_multiplier=sigma, largest=2.0, dimension=dimension, number=number)


def gap_tested(sigma: float = 1.0, *, failure: float = 1e-3) -> GapTestedTopK:
    return GapTestedTopK(noise_multiplier=sigma, largest=2.0, dimension=4, number=2, failure=failure)


def chances(sums: np.ndarray, *, number: int, scale: float) -> dict[frozenset[int], float]:
    """Of each set, drawn one after the other with weights exp(sum / scale)."""
    weights = np.exp((sums - sums.max()) / scale)
    found: dict[frozenset[int], float] = {}
    for order in itertools.permutations(range(len(sums)), number):
        left, chance = weights.sum(), 1.0
        for option in order:
            chance *= weights[option] / left
            left -= weights[option]
        found[frozenset(order)] = found.get(frozenset(order), 0.0) + chance
    return found


def divergence(one: dict, other: dict, epsilon: float) -> float:
    """Hockey-stick, at e^ε."""
    return sum(max(0.0, p - math.exp(epsilon) * other.get(key, 0.0)) for key, p in one.items())


def covered(one: dict, other: dict, event: Event) -> bool:
    """Whether what is charged is enough for two distributions, in both directions, at every δ."""
    return all(
        divergence(p, q, epsilon) <= delta * (1 + 1e-6)
        for delta, epsilon in charged(event)
        for p, q in ((one, other), (other, one))
    )


@cache
def charged(event: Event) -> list[tuple[float, float]]:
    return [(delta, epsilon_pld([event], delta)) for delta in DELTAS]


# --- the exponential mechanism -------------------------------------------------------------------------


def neighbours(count: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sums of four options and what one unit adds to them: random ones, and all in one or in none."""
    rng = np.random.default_rng(0)
    corners = [np.array(corner) * 2.0 for corner in itertools.product((0, 1), repeat=4)]
    ups = [*corners, *(2 * rng.random(4) for _ in range(count))]
    return [(base, up) for base in (np.zeros(4), np.array([0.0, 1, 2, 6])) for up in ups]


@pytest.mark.parametrize(("sigma", "number"), [(0.25, 1), (0.25, 2), (1.0, 3)])
def test_a_choice_by_chance_is_never_better_told_apart_than_paid_for(sigma, number):
    mechanism = exponential(sigma, number=number)
    scale = 2 * sigma * mechanism.largest
    worst = 0.0
    for base, up in neighbours():
        one, other = (chances(sums, number=number, scale=scale) for sums in (base, base + up))
        assert covered(one, other, mechanism.event)
        worst = max(worst, *(abs(math.log(one[key] / other[key])) for key in one))
    assert worst > 0.45 * number / (2 * sigma), "near what was paid for, so that a larger one would show"


def test_less_noise_than_paid_for_is_caught():
    """Planted: the noise of a mechanism whose units could do half as much."""
    mechanism = exponential(0.25, number=1)
    pairs = [tuple(chances(s, number=1, scale=0.5) for s in (b, b + up)) for b, up in neighbours()]
    assert not all(covered(one, other, mechanism.event) for one, other in pairs)


def frequencies(mechanism: ExponentialTopK | GapTestedTopK, sums: np.ndarray, draws: int = 4000) -> dict:
    found: dict[frozenset[int], float] = {}
    for _ in range(draws):
        answer = mechanism.answer(mechanism.perturbed(torch.from_numpy(sums.copy()), None).numpy())
        chosen = frozenset(np.flatnonzero(answer).tolist())
        found[chosen] = found.get(chosen, 0.0) + 1 / draws
    return found


def far(found: dict, expected: dict, draws: int = 4000) -> bool:
    return any(
        abs(found.get(key, 0.0) - p) > 4.5 * math.sqrt(p * (1 - p) / draws) + 1 / draws
        for key, p in expected.items()
    )


def test_one_shot_has_the_distribution_of_draws_one_after_the_other(monkeypatch):
    mechanism, sums = exponential(0.5), np.array([0.0, 1.0, 2.0, 3.5])
    expected = chances(sums, number=2, scale=2 * 0.5 * 2.0)
    assert not far(frequencies(mechanism, sums), expected)
    own = top_k._gumbel
    monkeypatch.setattr(top_k, "_gumbel", lambda count: own(count) / 2)
    assert far(frequencies(mechanism, sums), expected), "planted: half the noise"


def test_with_little_noise_the_largest_are_chosen():
    sums = np.array([5.0, 1.0, 9.0, 2.0])
    assert frequencies(exponential(0.01), sums, 20) == {frozenset({0, 2}): pytest.approx(1.0)}


def test_gumbel_values_are_such():
    values = top_k._gumbel(200_000)
    assert float(values.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(values.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert float((values > 5).double().mean()) == pytest.approx(1 - math.exp(-math.exp(-5)), rel=0.15)


def test_a_draw_alone_costs_its_range_at_most_and_rounds_add_up_below_that():
    for eta in (0.1, 1.0, 3.0):
        single = epsilon_pld([ExponentialEvent(bounded_range=eta)], 1e-9)
        assert single == pytest.approx(eta, rel=2e-3)
        many = [ExponentialEvent(bounded_range=eta, rounds=20)]
        assert 3 * eta < epsilon_pld(many, 1e-6) < 20 * eta
        # Of many draws the Rényi figure may be lower, by less than √(4/3).
        assert epsilon_pld(many, 1e-6) < 1.16 * epsilon_rdp(many, 1e-6)
        split = [ExponentialEvent(bounded_range=eta, rounds=rounds) for rounds in (13, 7)]
        assert epsilon_pld(split, 1e-6) == epsilon_pld(many, 1e-6)


def test_the_renyi_curve_is_above_every_choice():
    orders = (1.5, 2.0, 8.0, 64.0)
    for eta in (0.1, 1.0, 3.0):
        curve = rdp_curve(ExponentialEvent(bounded_range=eta), orders)
        for t in np.linspace(0.01, 0.99, 25) * eta:
            high = (1 - math.exp(t - eta)) / (1 - math.exp(-eta))
            for order, bound in zip(orders, curve, strict=True):
                total = high * math.exp((order - 1) * t) + (1 - high) * math.exp((order - 1) * (t - eta))
                assert math.log(total) / (order - 1) <= bound * (1 + 1e-9)


# --- propose, test, release ----------------------------------------------------------------------------


def published(mechanism: GapTestedTopK, gap: float, what: str) -> dict[str, float]:
    """Of a data set whose gap is `gap` and whose k largest are `what`: exact chances of each outcome."""
    deviation = mechanism.noise_multiplier * (1 + MARGIN) * mechanism.largest
    chance = float(norm.sf((mechanism.threshold - gap) / deviation))
    return {what: chance, "nothing": 1 - chance}


def outcomes(mechanism: GapTestedTopK) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Neighbours: gaps apart by at most Δ, and another choice wherever neither gap is above Δ."""
    largest = mechanism.largest
    pairs = []
    for gap in np.linspace(0, 30, 61) * largest:
        for other in (gap - largest, gap, gap + largest):
            if other >= 0:
                what = "the same" if max(gap, other) > largest else "another"
                pairs.append((published(mechanism, gap, "the same"), published(mechanism, other, what)))
    return pairs


@pytest.mark.parametrize(("sigma", "failure"), [(0.5, 1e-3), (1.0, 1e-6), (5.0, 1e-4), (5.0, 0.02)])
def test_a_tested_choice_is_never_better_told_apart_than_paid_for(sigma, failure):
    mechanism = gap_tested(sigma, failure=failure)
    assert all(covered(one, other, mechanism.event) for one, other in outcomes(mechanism))
    alone = epsilon_pld([GaussianEvent(noise_multiplier=sigma)], 20 * failure)
    assert alone <= epsilon_pld([mechanism.event], 20 * failure) < 1.1 * alone + 0.1
    assert epsilon_pld([mechanism.event], failure / 2) == math.inf


def test_the_published_codes_threshold_is_caught(monkeypatch):
    """Planted: two standard deviations, whatever δ, and no room for what a unit does to the gap itself."""
    monkeypatch.setattr(GapTestedTopK, "threshold", property(lambda self: 2 * self.noise_multiplier * 2.0))
    mechanism = gap_tested(5.0, failure=1e-4)
    assert not all(covered(one, other, mechanism.event) for one, other in outcomes(mechanism))


def test_what_is_published_follows_the_gap():
    mechanism, ordered = gap_tested(0.5, failure=0.2), np.array([1.0, 9.0, 2.0, 7.2])
    wide = ordered * 10
    assert frequencies(mechanism, wide, 50) == {frozenset({1, 3}): pytest.approx(1.0)}
    close = np.array([5.0, 9.0, 2.0, 7.0])  # a gap of Δ, where one unit could change the choice
    found = frequencies(mechanism, close)
    assert found.keys() == {frozenset(), frozenset({1, 3})}
    assert 0.15 < found[frozenset({1, 3})] < 0.2 + 0.03


# --- both ----------------------------------------------------------------------------------------------

WILD = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -3.0, 0.0, 2.0]))


@pytest.mark.parametrize("mechanism", [exponential(), gap_tested()], ids=lambda one: type(one).__name__)
def test_a_unit_moves_each_sum_up_and_by_no_more_than_the_largest(mechanism):
    @given(st.lists(st.lists(WILD, min_size=4, max_size=4), min_size=1, max_size=5))
    @settings(max_examples=100, deadline=None)
    def check(units: list[list[float]]) -> None:
        moved = mechanism.sums(units) - mechanism.sums(units[1:])
        assert np.isfinite(moved).all()
        assert (moved >= -1e-9).all()
        assert (moved <= mechanism.largest + 1e-9).all()

    check()
    assert mechanism.sums(np.zeros((0, 4))).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exponential(number=5), "number is 5; it must be from 1 to the 4"),
        (lambda: exponential(0.0), "noise_multiplier is 0.0"),
        (
            lambda: ExponentialTopK(noise_multiplier=1.0, largest=0.0, dimension=4, number=1),
            "largest is 0.0",
        ),
        (
            lambda: ExponentialTopK(
                noise_multiplier=1.0, largest=1.0, dimension=4, number=1, sampling_rate=0.5
            ),
            "sampling_rate is 0.5; a choice without published sums has no amplification",
        ),
        (lambda: gap_tested(failure=0.0), "failure is 0.0"),
        (
            lambda: GapTestedTopK(noise_multiplier=1.0, largest=1.0, dimension=2, number=2, failure=0.1),
            "nothing is left to be tested against",
        ),
    ],
)
def test_impossible_choices_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "event",
    [
        ExponentialEvent(bounded_range=0.1, rounds=38),
        StabilityTestEvent(noise_multiplier=5.0, failure=1e-8),
    ],
    ids=lambda event: type(event).__name__,
)
def test_they_are_part_of_plans_and_limits_like_any_release(event):
    assert event_from_dict(event_to_dict(event)) == event
    unit = PrivacyUnit(name="record", num_units=50_000, description="one image", windows_per_event=None)
    options = {"expected_batch_size": 4096, "num_steps": 3, "max_grad_norm": 1.0, "delta": 1e-6}
    bare = PrivacyPlan(unit=unit, noise_multiplier=1.0, **options)
    plan = PrivacyPlan(unit=unit, noise_multiplier=1.0, prior=(event,), **options)
    assert max(bare.epsilon, epsilon_pld([event], 1e-6)) < plan.epsilon
    assert plan.epsilon < bare.epsilon + epsilon_pld([event], 1e-6)
    alone = epsilon_pld([event], 1e-6)
    assert alone < filter_epsilon([event], 1e-6, limit_epsilon=4.0) < 2 * alone + 1
    with pytest.raises(ValueError, match="the releases before training cost"):
        PrivacyPlan.make(unit, target_epsilon=alone / 2, noise_multiplier=None, prior=[event], **options)


def test_a_test_that_fails_more_often_than_delta_allows_is_beyond_any_limit():
    event = StabilityTestEvent(noise_multiplier=5.0, failure=1e-5)
    assert filter_epsilon([event], 1e-6, limit_epsilon=4.0) == math.inf
    assert epsilon_rdp([event], 1e-6) == epsilon_pld([event], 1e-6) == math.inf


# --- of a Poisson sample -------------------------------------------------------------------------------


def test_a_sampled_sum_is_paid_for_as_one():
    mechanism = VectorSum(noise_multiplier=5.0, max_norm=1.0, dimension=3, sampling_rate=0.2)
    assert mechanism.event == GaussianEvent(noise_multiplier=5.0, sampling_rate=0.2, steps=1)
    every = VectorSum(noise_multiplier=5.0, max_norm=1.0, dimension=3)
    assert epsilon_pld([mechanism.event], 1e-6) < 0.5 * epsilon_pld([every.event], 1e-6)
    with pytest.raises(ValueError, match="sampling_rate is 0; it is a chance"):
        VectorSum(noise_multiplier=5.0, max_norm=1.0, dimension=3, sampling_rate=0)
