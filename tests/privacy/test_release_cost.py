"""What a release may cost: the noise asked for, or the least noise for a share of a fit's ε."""

import math

import pytest

from lightning_dp.privacy.accounting import Event, GaussianEvent, epsilon_pld
from lightning_dp.privacy.release_cost import ReleaseCost

DELTA = 1e-5


def cost(**given: float | None) -> ReleaseCost:
    return ReleaseCost(
        "Owner", **{"noise_multiplier": None, "budget_share": None, "usual_share": 0.25, **given}
    )


def two(sigma: float) -> Event:
    return GaussianEvent(noise_multiplier=sigma, steps=2)


@pytest.mark.parametrize("sigma", [1e-3, 0.7, 5.0])
@pytest.mark.parametrize("target", [None, 8.0])
def test_noise_that_is_asked_for_is_taken(sigma, target):
    assert cost(noise_multiplier=sigma).noise_multiplier(target_epsilon=target, delta=DELTA) == sigma


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_impossible_noise_is_refused(sigma):
    with pytest.raises(ValueError, match=r"^Owner\.noise_multiplier is .*above 0$"):
        cost(noise_multiplier=sigma)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match=r"^Owner\.budget_share is .*share in \(0, 1\)$"):
        cost(budget_share=share)


def test_one_of_two_is_given():
    with pytest.raises(ValueError, match=r"^Owner has both"):
        cost(noise_multiplier=1.0, budget_share=0.1)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"target_epsilon, which is not set: give Owner\.noise_multiplier"):
        cost(budget_share=0.1).noise_multiplier(target_epsilon=None, delta=DELTA)


@pytest.mark.parametrize("event_fn", [None, two])
@pytest.mark.parametrize(("share", "target"), [(None, 8.0), (0.1, 8.0), (0.5, 0.4), (0.9, 3.0)])
def test_the_share_is_kept_and_hardly_undercut(event_fn, share, target):
    """σ is the least to four digits: the share is met, and 3 in a thousand less would not meet it."""
    sigma = cost(budget_share=share).noise_multiplier(target_epsilon=target, delta=DELTA, event_fn=event_fn)
    event = event_fn or (lambda sigma: GaussianEvent(noise_multiplier=sigma))
    allowed = (0.25 if share is None else share) * target
    assert epsilon_pld([event(sigma)], DELTA) <= allowed
    assert epsilon_pld([event(0.997 * sigma)], DELTA) > allowed


@pytest.mark.parametrize("edge", [0.0713, 0.9999, 1.0, 1.235, 7.777, 123.4, 9_990.0])
@pytest.mark.parametrize("beyond", [1e-9, 1e-6, 9e-6, 4e-4])
def test_the_share_holds_where_the_search_ends_beside_its_root(edge, beyond):
    """ε jumps next to a rounded σ: what is found before it was rounded lies on either side."""
    least = edge * (1 + beyond)

    def jumping(sigma: float) -> Event:
        return GaussianEvent(noise_multiplier=5.0 if sigma >= least else 0.4)

    sigma = cost(budget_share=0.5).noise_multiplier(target_epsilon=4.0, delta=DELTA, event_fn=jumping)
    assert least <= sigma <= 1.003 * least


def test_where_the_least_noise_is_enough_there_is_no_search():
    def cheap(sigma: float) -> Event:
        return GaussianEvent(noise_multiplier=100.0 + sigma)

    sigma = cost(budget_share=0.5).noise_multiplier(target_epsilon=4.0, delta=DELTA, event_fn=cheap)
    assert sigma == pytest.approx(0.05)


def test_a_release_that_no_noise_makes_cheap_enough_is_refused():
    def dear(sigma: float) -> Event:
        return GaussianEvent(noise_multiplier=0.4)

    with pytest.raises(ValueError, match=r"^Owner\.budget_share leaves ε = 2 to a release"):
        cost(budget_share=0.5).noise_multiplier(target_epsilon=4.0, delta=DELTA, event_fn=dear)
