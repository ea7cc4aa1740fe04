"""What a release before training may cost: a noise multiplier, or a share of the fit's target ε."""

import math
from collections.abc import Callable
from typing import final

from scipy.optimize import brentq

from lightning_dp.privacy.accounting import Event, epsilon_pld
from lightning_dp.privacy.plan import calibrate_noise_multiplier


@final
class ReleaseCost:
    """Gaussian releases that together are as good as one of a noise multiplier.

    Args:
        owner: the class to name in errors.
        noise_multiplier: σ > 0; or
        budget_share: share in (0, 1) of the target ε that the releases alone would cost, at the same δ.
            Give one of the two; neither is `usual_share`.
        usual_share: in (0, 1).

    Raises:
        ValueError: one is out of range, or both are given.
    """

    def __init__(
        self,
        owner: str,
        *,
        noise_multiplier: float | None,
        budget_share: float | None,
        usual_share: float,
    ) -> None:
        if noise_multiplier is not None and budget_share is not None:
            raise ValueError(
                f"{owner} has both noise_multiplier and budget_share, but one follows from the other: leave "
                "one out"
            )
        if noise_multiplier is not None and not 0 < noise_multiplier < float("inf"):
            raise ValueError(f"{owner}.noise_multiplier is {noise_multiplier}, but it must be above 0")
        if budget_share is not None and not 0 < budget_share < 1:
            raise ValueError(f"{owner}.budget_share is {budget_share}, but it is a share in (0, 1)")
        self._owner = owner
        self._noise_multiplier = noise_multiplier
        self._share = usual_share if budget_share is None else budget_share

    def noise_multiplier(
        self,
        *,
        target_epsilon: float | None,
        delta: float,
        event_fn: Callable[[float], Event] | None = None,
    ) -> float:
        """σ for a fit.

        Args:
            target_epsilon: of the fit, None where only its noise is given.
            delta: of the fit.
            event_fn: from σ to what is charged, cheaper with a larger one; None for one Gaussian release.

        Raises:
            ValueError: it would be a share of nothing.
        """
        if self._noise_multiplier is not None:
            return self._noise_multiplier
        if target_epsilon is None:
            raise ValueError(
                f"{self._owner}.budget_share is a share of privacy.target_epsilon, which is not set: give "
                f"{self._owner}.noise_multiplier"
            )
        if event_fn is not None:
            return _least(event_fn, self._share * target_epsilon, delta, owner=self._owner)
        return calibrate_noise_multiplier(
            target_epsilon=self._share * target_epsilon, delta=delta, sampling_rate=1.0, num_steps=1
        )


def _least(event_fn: Callable[[float], Event], target: float, delta: float, *, owner: str) -> float:
    """The smallest σ from .05 to 10,000, to four digits rounded up, for the target."""

    def excess(log_sigma: float) -> float:
        return min(epsilon_pld([event_fn(math.exp(log_sigma))], delta), 2 * target) - target

    least, most = math.log(0.05), math.log(1e4)
    low = high = 0.0
    while low > least and excess(low) <= 0:
        low, high = max(low - math.log(2), least), low
    if excess(low) <= 0:
        return math.exp(least)
    while excess(high) > 0:
        if high >= most:
            raise ValueError(
                f"{owner}.budget_share leaves ε = {target:.4g} to a release that can't be had for so little, "
                "whatever its noise: give it a larger share, or its noise_multiplier"
            )
        low, high = high, min(high + math.log(2), most)
    best = math.exp(brentq(excess, low, high, xtol=1e-5))
    digits = 3 - math.floor(math.log10(best))
    rounded = math.ceil(best * 10**digits) / 10**digits
    while excess(math.log(rounded)) > 0:  # the root is approached from either side, and ε is on a grid
        rounded *= 1 + 1e-3
    result: float = rounded
    return result
