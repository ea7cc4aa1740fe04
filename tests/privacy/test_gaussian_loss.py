"""The grid of a sampled Gaussian's loss is dp_accounting's, and above the exact divergence at every ε."""

import itertools

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld_lib
from scipy.integrate import quad
from scipy.stats import norm

from lightning_dp.privacy import gaussian_loss
from lightning_dp.privacy.gaussian_loss import gaussian_pld

CASES = [(sigma, rate) for sigma in (0.3, 0.8, 2.0, 20.0) for rate in (1.0, 0.999, 0.1, 1e-3, 1e-7)]
CASES += [(0.05, 0.01), (0.05, 1.0)]


def _deltas(pld, epsilons):
    """Of addition or removal, whichever is more."""
    return np.asarray(pld.get_delta_for_epsilon(epsilons))


@pytest.mark.parametrize(("sigma", "rate"), CASES)
def test_equal_to_dp_accounting(sigma, rate):
    interval = 1e-2 if sigma < 0.1 else 1e-3
    own = gaussian_pld(sigma, sampling_rate=rate, interval=interval)
    theirs = pld_lib.from_gaussian_mechanism(
        sigma, sampling_prob=rate, value_discretization_interval=interval, use_connect_dots=True
    )
    epsilons = sorted([0.0, 1e-3, 0.1, 1.0, 5.0, 1 / sigma**2])
    np.testing.assert_allclose(_deltas(own, epsilons), _deltas(theirs, epsilons), rtol=1e-9, atol=1e-11)
    for number in (2, 100):
        mine, other = (pld.self_compose(number).get_epsilon_for_delta(1e-5) for pld in (own, theirs))
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-9)


def _exact(epsilon, sigma, rate):
    """The divergence by numerical integration of max(p − e^ε q, 0), the larger of both relations."""

    def mixed(x):
        return (1 - rate) * norm.pdf(x, scale=sigma) + rate * norm.pdf(x, loc=1, scale=sigma)

    def alone(x):
        return norm.pdf(x, scale=sigma)

    def divergence(p, q):
        points = np.linspace(-12 * sigma, 1 + 12 * sigma, 60)
        parts = itertools.pairwise(points)
        return sum(
            quad(lambda x: max(p(x) - np.exp(epsilon) * q(x), 0.0), *part, epsabs=1e-14)[0] for part in parts
        )

    return max(divergence(mixed, alone), divergence(alone, mixed))


@pytest.mark.parametrize(("sigma", "rate"), [(0.5, 0.1), (1.0, 0.01), (2.0, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.7, 2.0])
def test_an_upper_bound_that_is_tight_on_a_fine_grid(sigma, rate, epsilon):
    bound = _deltas(gaussian_pld(sigma, sampling_rate=rate, interval=1e-4), epsilon)
    exact = _exact(epsilon, sigma, rate)
    assert exact - 1e-10 <= bound <= exact + 1e-4 * exact + 1e-8


@pytest.mark.parametrize(("field", "value"), [("sampling_rate", 0.09), ("interval", 1e-4)])
def test_another_rate_or_another_grid_would_be_seen(field, value):
    """What is equal above is not equal by itself."""
    facts = {"sampling_rate": 0.1, "interval": 1e-3}
    right, wrong = (gaussian_pld(0.8, **kind) for kind in (facts, {**facts, field: value}))
    found, other = (pld.self_compose(500).get_epsilon_for_delta(1e-5) for pld in (right, wrong))
    assert other != pytest.approx(found, rel=1e-6)


def test_one_relation_taken_for_the_other_would_be_seen(monkeypatch):
    kinds = gaussian_loss.AdjacencyType
    right = gaussian_pld(0.8, sampling_rate=0.1, interval=1e-3).get_delta_for_epsilon(2.0)
    monkeypatch.setattr(
        gaussian_loss, "AdjacencyType", type("Swapped", (), {"REMOVE": kinds.ADD, "ADD": kinds.ADD})
    )
    assert gaussian_pld(0.8, sampling_rate=0.1, interval=1e-3).get_delta_for_epsilon(2.0) < 0.1 * right
