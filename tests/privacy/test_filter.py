"""The filter of budgets, against the sum it is said to be, in plain numbers."""

import math
from itertools import pairwise

import pytest

from lightning_dp.privacy.accounting import Event, GaussianEvent, StabilityTestEvent
from lightning_dp.privacy.ledger.filter import ORDERS, filter_epsilon

GAUSSIANS = [GaussianEvent(noise_multiplier=2.0, steps=3), GaussianEvent(noise_multiplier=5.0, steps=4)]
OF_GAUSSIANS = 3 / (2 * 2.0**2) + 4 / (2 * 5.0**2)
"""Their Rényi divergence is this times the order."""


def converted(delta: float, order: float) -> float:
    return math.log(1 - 1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def best_order(delta: float, limit: float) -> float:
    """At which a multiple of the order may be largest."""
    tried = [1 + 0.25 * 8192 ** (k / 499) for k in range(500)]
    return max(tried, key=lambda order: (limit - converted(delta, order)) / order)


def shares(delta: float, limit: float) -> dict[float, float]:
    best = best_order(delta, limit)
    far = {order: 2.0 ** (-4 * abs(math.log2((order - 1) / (best - 1)))) for order in ORDERS}
    return {order: delta * share / sum(far.values()) for order, share in far.items()}


@pytest.mark.parametrize("limit", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-9])
def test_the_filter_is_the_least_of_orders_with_a_share_of_delta_each(limit, delta):
    parts = shares(delta, limit)
    assert sum(parts.values()) == pytest.approx(delta)
    expected = min(order * OF_GAUSSIANS + converted(part, order) for order, part in parts.items())
    assert filter_epsilon(GAUSSIANS, delta, limit_epsilon=limit) == pytest.approx(expected, rel=1e-9)


def test_what_tests_may_fail_at_comes_off_delta_first():
    event = StabilityTestEvent(noise_multiplier=2.0, failure=2e-6)
    events: list[Event] = [event, event]
    bare = filter_epsilon([GaussianEvent(noise_multiplier=2.0, steps=2)], 6e-6, limit_epsilon=3.0)
    assert filter_epsilon(events, 1e-5, limit_epsilon=3.0) == pytest.approx(bare, rel=1e-4)
    assert filter_epsilon(events, 3.9e-6, limit_epsilon=3.0) == math.inf


def test_nothing_costs_nothing_and_a_delta_is_asked_for():
    assert filter_epsilon([], 1e-5, limit_epsilon=1.0) == 0
    assert filter_epsilon([GaussianEvent(noise_multiplier=1.0, steps=0)], 1e-5, limit_epsilon=1.0) == 0
    assert filter_epsilon([GaussianEvent(noise_multiplier=1e6)], 0.9, limit_epsilon=1.0) == 0
    with pytest.raises(ValueError, match="delta must be"):
        filter_epsilon(GAUSSIANS, 0.0, limit_epsilon=1.0)


def test_orders_are_spread_from_near_one_to_thousands():
    assert ORDERS[0] == 1.25
    assert all(low < high <= 1.6 * low for low, high in pairwise(ORDERS))
    assert ORDERS[-1] > 2000
    assert all(order == round(order) for order in ORDERS if order >= 8)
