"""ε against independent accountants: Google's PLD and RDP, Opacus's PRV."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution as pld_lib
from opacus.accountants import PRVAccountant

from lightning_dp.privacy.accounting import (
    GaussianEvent,
    LaplaceEvent,
    epsilon_pld,
    epsilon_rdp,
    event_from_dict,
    event_to_dict,
    group_epsilon,
)

PLANS = [  # σ, q, steps, δ
    (1.0, 0.01, 10_000, 1e-5),
    (0.7, 0.06, 400, 1e-5),
    (1.686, 62 / 498, 500, 1e-4),
    (4.0, 0.2, 1_000, 1e-6),
    (20.0, 1.0, 50, 1e-5),
    (1.1, 0.001, 2_000, 1e-7),
]


def gaussian(sigma: float, q: float, steps: int) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=sigma, sampling_rate=q, steps=steps)


@pytest.mark.parametrize(("sigma", "q", "steps", "delta"), PLANS)
def test_pld_is_dp_accountings_and_below_rdp(sigma, q, steps, delta):
    accountant = PLDAccountant()
    single = dp_event.GaussianDpEvent(sigma)
    accountant.compose(single if q == 1 else dp_event.PoissonSampledDpEvent(q, single), steps)
    ours = epsilon_pld([gaussian(sigma, q, steps)], delta)
    theirs = accountant.get_epsilon(delta)
    assert theirs - 1e-6 <= ours <= theirs + 1e-6 * max(1, theirs)  # a coarser grid where ε is large
    assert ours <= epsilon_rdp([gaussian(sigma, q, steps)], delta)


@pytest.mark.parametrize(("sigma", "q", "steps", "delta"), PLANS[:4])
def test_pld_lies_between_prv_bounds(sigma, q, steps, delta):
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps)]
    dprv = accountant._get_dprv(eps_error=0.01, delta_error=delta / 1000)
    low, _, high = dprv.compute_epsilon(delta, delta / 1000, 0.01)
    assert low <= epsilon_pld([gaussian(sigma, q, steps)], delta) <= high + 1e-3


@pytest.mark.parametrize(("sigma", "finer"), [(0.2, 0.01), (0.5, 1e-3)])
def test_a_large_epsilon_is_an_upper_bound_next_to_that_of_a_finer_grid(sigma, finer):
    q, steps, delta = 96 / 1434, 20_000, 1e-5
    single = pld_lib.from_gaussian_mechanism(sigma, sampling_prob=q, value_discretization_interval=finer)
    fine = single.self_compose(steps).get_epsilon_for_delta(delta)
    assert fine <= epsilon_pld([gaussian(sigma, q, steps)], delta) <= 1.001 * fine


def test_known_value():
    # privacy.md's measurement: σ = 1, q = .01, 10⁴ steps, δ = 1e-5.
    assert epsilon_pld([gaussian(1.0, 0.01, 10_000)], 1e-5) == pytest.approx(6.1877, abs=1e-3)


def test_composition_of_different_mechanisms_is_between_its_parts_and_their_sum():
    parts = [gaussian(1.0, 0.05, 200), gaussian(5.0, 1.0, 1), LaplaceEvent(noise_multiplier=4.0)]
    alone = [epsilon_pld([part], 1e-5) for part in parts]
    together = epsilon_pld(parts, 1e-5)
    assert max(alone) < together < sum(alone)
    assert together <= epsilon_rdp(parts, 1e-5)
    # The same charge in two pieces is the same charge.
    pieces = [gaussian(1.0, 0.05, 120), *parts[1:], gaussian(1.0, 0.05, 80)]
    assert epsilon_pld(pieces, 1e-5) == pytest.approx(together, abs=1e-9)


def test_nothing_costs_nothing():
    assert epsilon_pld([], 1e-5) == 0
    assert epsilon_pld([gaussian(1.0, 0.1, 0)], 1e-5) == 0


def test_coarse_grid_never_reports_less():
    event = gaussian(1.2, 0.03, 700)
    assert epsilon_pld([event], 1e-5, interval=1e-3) >= epsilon_pld([event], 1e-5)


def test_group_of_one_is_the_unit_and_larger_groups_cost_more():
    event = gaussian(2.0, 0.01, 300)
    costs = [group_epsilon([event], 1e-5, group_size=k) for k in (1, 2, 5, 20)]
    assert costs[0] == epsilon_pld([event], 1e-5)
    assert costs == sorted(costs)
    assert costs[1] > 1.5 * costs[0]


def test_group_of_plain_gaussians_is_a_gaussian_with_larger_sensitivity():
    # Without sampling all k units are hit every time: sensitivity k, that is σ / k.
    group = group_epsilon([gaussian(30.0, 1.0, 10)], 1e-5, group_size=6)
    assert group == pytest.approx(epsilon_pld([gaussian(5.0, 1.0, 10)], 1e-5), rel=2e-3)
    assert group >= epsilon_pld([gaussian(5.0, 1.0, 10)], 1e-5) - 1e-6


def test_group_epsilon_bounds_a_simulated_group():
    """One step, k = 3, q = .5: the tight δ(ε) by numerical integration is not above the reported one."""
    sigma, q, k, delta = 1.5, 0.5, 3, 1e-3
    epsilon = group_epsilon([gaussian(sigma, q, 1)], delta, group_size=k)
    x = np.linspace(-15, 20, 200_001)
    chances = [math.comb(k, j) * q**j * (1 - q) ** (k - j) for j in range(k + 1)]

    def density(shift):
        return np.exp(-((x - shift) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    mixture = sum(p * density(j) for j, p in enumerate(chances))
    for upper, lower in ((mixture, density(0)), (density(0), mixture)):
        true_delta = np.trapezoid(np.maximum(upper - math.exp(epsilon) * lower, 0), x)
        assert true_delta <= delta * (1 + 1e-6)


def test_events_survive_json():
    for event in (gaussian(1.0, 0.5, 3), LaplaceEvent(noise_multiplier=2.0)):
        assert event_from_dict(event_to_dict(event)) == event


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, float("nan")])
def test_delta_out_of_range_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be"):
        epsilon_pld([gaussian(1.0, 0.1, 1)], delta)


@pytest.mark.parametrize(
    "fields",
    [{"noise_multiplier": 0}, {"sampling_rate": 0.0}, {"sampling_rate": 1.1}, {"steps": -1}],
)
def test_impossible_events_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        GaussianEvent(**{"noise_multiplier": 1.0, "sampling_rate": 0.5, "steps": 1, **fields})
