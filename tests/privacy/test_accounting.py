"""ε against independent accountants: Google's PLD and RDP, Opacus's PRV."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution as pld_lib
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant
from scipy.stats import norm

from lightning_dp.privacy import accounting
from lightning_dp.privacy.accounting import (
    ExponentialEvent,
    GaussianEvent,
    LaplaceEvent,
    StabilityTestEvent,
    count_releases,
    epsilon_pld,
    epsilon_rdp,
    event_from_dict,
    event_to_dict,
    failures,
    group_epsilon,
    rdp_curve,
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


IMPOSSIBLE = [
    (GaussianEvent, {"noise_multiplier": 1.0}, "noise_multiplier", (0.0, -0.5, math.inf, math.nan)),
    (GaussianEvent, {"noise_multiplier": 1.0}, "sampling_rate", (0.0, -0.5, 1.001, 2.0, math.nan)),
    (GaussianEvent, {"noise_multiplier": 1.0}, "steps", (-1,)),
    (LaplaceEvent, {}, "noise_multiplier", (0.0, -0.5, math.inf, math.nan)),
    (ExponentialEvent, {}, "bounded_range", (0.0, -0.5, math.inf, math.nan)),
    (ExponentialEvent, {"bounded_range": 1.0}, "rounds", (0, -1)),
    (StabilityTestEvent, {"failure": 0.5}, "noise_multiplier", (0.0, -0.5, math.inf, math.nan)),
    (StabilityTestEvent, {"noise_multiplier": 1.0}, "failure", (0.0, -0.5, 1.0, 1.5, math.nan)),
]


@pytest.mark.parametrize(
    ("kind", "fields", "field", "value"),
    [(kind, fields, field, value) for kind, fields, field, values in IMPOSSIBLE for value in values],
)
def test_impossible_events_are_refused(kind, fields, field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        kind(**{**fields, field: value})


def test_events_at_the_edge_of_what_is_possible():
    once = GaussianEvent(noise_multiplier=1.0)
    assert (once.sampling_rate, once.steps) == (1.0, 1)
    assert ExponentialEvent(bounded_range=1.0) == ExponentialEvent(bounded_range=1.0, rounds=1)
    assert gaussian(0.5, 0.5, 0).steps == 0
    assert ExponentialEvent(bounded_range=0.5, rounds=3).rounds == 3
    for number in (LaplaceEvent(noise_multiplier=0.5), StabilityTestEvent(noise_multiplier=0.5, failure=0.5)):
        assert number.noise_multiplier == 0.5


def test_what_is_no_event_is_refused():
    with pytest.raises(ValueError, match=r"event type must be one of .*GaussianEvent.*, not 'Uniform'"):
        event_from_dict({"type": "Uniform", "noise_multiplier": 1.0})


def test_releases_are_counted_by_mechanism():
    laplace, twice = LaplaceEvent(noise_multiplier=2.0), ExponentialEvent(bounded_range=1.0, rounds=2)
    events = [gaussian(1.0, 0.5, 3), laplace, gaussian(1.0, 0.5, 4), gaussian(2.0, 0.5, 0), twice, twice]
    expected = {gaussian(1.0, 0.5, 1): 7, laplace: 1, ExponentialEvent(bounded_range=1.0): 4}
    assert count_releases(events) == expected


@pytest.mark.parametrize("sigma", [0.7, 3.0])
def test_one_gaussian_costs_what_is_known_in_closed_form(sigma):
    """Balle & Wang 2018, arXiv 1805.06530, Thm 8, and Rényi's α/2σ² at the best whole order."""
    epsilon = epsilon_pld([GaussianEvent(noise_multiplier=sigma)], 1e-5)

    def delta(epsilon: float) -> float:
        return norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(
            -0.5 / sigma - epsilon * sigma
        )

    assert delta(epsilon) <= 1e-5 < delta(epsilon - 2e-4)
    by_order = [
        number / (2 * sigma**2)
        + math.log(1 - 1 / number)
        - (math.log(1e-5) + math.log(number)) / (number - 1)
        for number in range(2, 65)
    ]
    assert epsilon_rdp([GaussianEvent(noise_multiplier=sigma)], 1e-5) == pytest.approx(
        min(by_order), rel=1e-9
    )


def test_renyi_curves_add_up_and_tests_take_from_delta():
    event = StabilityTestEvent(noise_multiplier=2.0, failure=2e-6)
    alphas = np.array([2.0, 5.0])
    bare = alphas / 8
    expected = bare - math.log1p(-2e-6) * alphas / (alphas - 1)
    assert rdp_curve(event, (2.0, 5.0)) == pytest.approx(expected, rel=1e-12)
    assert rdp_curve(GaussianEvent(noise_multiplier=2.0), (2.0, 5.0)) == pytest.approx(bare, rel=1e-12)
    exponential = rdp_curve(ExponentialEvent(bounded_range=3.0), (2.0, 5.0))
    assert exponential.tolist() == [2.25, 3.0]
    counts = count_releases([event, event, event, GaussianEvent(noise_multiplier=1.0)])
    assert failures(counts) == pytest.approx(6e-6, rel=1e-12)
    three = epsilon_rdp([event] * 3, 1e-5)
    gaussians = epsilon_rdp([GaussianEvent(noise_multiplier=2.0, steps=3)], 4e-6)
    assert three == pytest.approx(gaussians, rel=1e-4)
    assert epsilon_rdp([event] * 6, 1e-5) == math.inf
    assert epsilon_rdp([], 1e-5) == 0


@pytest.mark.parametrize("sigma", [0.25, 1.0, 5.0])
def test_what_a_test_gives_away_is_no_less_than_its_failure_asks_for(sigma):
    """Below d = failure / (1 − h(0)) no ε holds, with h(0) the Gaussian's total variation."""
    given_away = 1e-4 / (2 - 2 * norm.cdf(0.5 / sigma))
    event = StabilityTestEvent(noise_multiplier=sigma, failure=1e-4)
    assert epsilon_pld([event], 0.99 * given_away) == math.inf
    assert epsilon_pld([event], 1.01 * given_away) < math.inf


def test_hits_of_a_group_that_are_left_out_are_taken_from_delta(monkeypatch):
    """Of at most three hits two and three: δ is smaller by what they weigh, or gone."""
    monkeypatch.setattr(accounting.binom, "isf", lambda *_: 1)
    monkeypatch.setattr(accounting, "COARSE_INTERVAL", 1e-2)
    sigma, q, k, lost = 1.5, 0.1, 3, 3 * 0.1**2 * 0.9 + 0.1**3
    ours = group_epsilon([gaussian(sigma, q, 2)], 0.1, group_size=k)
    chances = [0.9**3, 3 * 0.1 * 0.9**2]
    single = pld_lib.from_mixture_gaussian_mechanism(
        sigma, [0.0, 1.0], [p / sum(chances) for p in chances], value_discretization_interval=1e-2
    )
    left = single.self_compose(2).get_epsilon_for_delta(0.1 - 2 * lost)
    assert ours == pytest.approx(left, rel=1e-3)
    assert group_epsilon([gaussian(sigma, q, 2)], 2 * lost, group_size=k) == math.inf


def test_a_group_is_of_one_at_least():
    with pytest.raises(ValueError, match="group_size must be ≥ 1, not 0"):
        group_epsilon([gaussian(1.0, 0.1, 1)], 1e-5, group_size=0)
    assert group_epsilon([gaussian(1.0, 0.1, 0)], 1e-5, group_size=7) == 0


@pytest.mark.parametrize("rate", [1e-7, 1e-3, 0.02, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 1.3, 40.0])
def test_renyi_curves_are_dp_accounting_s(rate, sigma):
    """At whole orders, which are summed here at once, as at the others."""
    orders = (1.25, 2.0, 3.0, 4.17, 17.0, 64.0, 517.0, 2049.0)
    accountant = RdpAccountant(orders)
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)))
    curve = rdp_curve(GaussianEvent(noise_multiplier=sigma, sampling_rate=rate), orders)
    # The library's sum ends within 1e-11 of 0 where next to nothing is lost; so may this one.
    np.testing.assert_allclose(curve, accountant.rdp, rtol=1e-11, atol=1e-11)
