"""The trade-off curve that a plan claims, and whether errors of an attack are possible under it.

Under DP-SGD the curve is that of its dominating pair: T times N(0, σ²) against (1 − q) N(0, σ²) + q N(1, σ²)
(Zhu, Dong & Wang 2022, arXiv 2106.08567, Thm 11), from dp-accounting's loss distributions. It says more
than ε at one δ: a unit that is in at least one batch of every epoch, for instance, is found more reliably
than any noise allows where units are left out of an epoch with a chance of (1 − q)^(1/q).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld_lib

from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.audit.counts import Counts
from lightning_dp.privacy.audit.f_dp_one_run import is_refuted
from lightning_dp.privacy.audit.guesses import Guesses
from lightning_dp.privacy.audit.joint import p_value

_INTERVAL = 1e-3
_EPSILONS = np.concatenate([np.linspace(0, 5, 251), np.geomspace(5.05, 500, 150)])
_HALVINGS = 24
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e3


@dataclass(frozen=True)
class Curve:
    """A lower bound of FNR at each FPR for "was the unit there?", H₀: it was not.

    Args:
        removed: δ(ε) at `_EPSILONS` of "there" against "not there".
        added: the same the other way round.
    """

    removed: np.ndarray
    added: np.ndarray

    def fnr(self, fpr: np.ndarray | float) -> np.ndarray:
        """The least false negative rate (…) at false positive rates (…) in [0, 1]."""
        fpr = np.asarray(fpr, dtype=float)[..., None]
        growth = np.exp(_EPSILONS)
        one = 1 - self.removed - growth * fpr
        other = (1 - self.added - fpr) / growth
        return np.asarray(np.maximum(0.0, np.maximum(one, other).max(axis=-1)))

    def least_fpr(self, tpr: np.ndarray | float) -> np.ndarray:
        """The least false positive rate (…) at true positive rates (…), whichever of the two is the null."""
        tpr = np.asarray(tpr, dtype=float)[..., None]
        growth, worse = np.exp(_EPSILONS), np.maximum(self.removed, self.added)
        one = (tpr - worse) / growth
        other = 1 - worse - growth * (1 - tpr)
        return np.asarray(np.maximum(0.0, np.maximum(one, other).max(axis=-1)))


def curve_of(event: GaussianEvent) -> Curve:
    """The curve of all steps of an event together."""
    return _curve(event.noise_multiplier, event.sampling_rate, event.steps)


@lru_cache(maxsize=128)
def _curve(noise_multiplier: float, sampling_rate: float, steps: int) -> Curve:
    # Losses are rounded up by at most an interval each: the curve errs on the side of less privacy.
    interval = max(_INTERVAL, 2e-3 / noise_multiplier**2)
    single = pld_lib.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=interval,
        use_connect_dots=True,
    )
    total = single if steps == 1 else single.self_compose(steps)
    # The library has no other way to ask for one of the two directions.
    return Curve(
        removed=np.asarray(total._pmf_remove.get_delta_for_epsilon(_EPSILONS)),
        added=np.asarray(total._pmf_add.get_delta_for_epsilon(_EPSILONS)),
    )


def noise_multiplier_upper_bound(event: GaussianEvent, counts: Counts, *, alpha: float) -> float:
    """The largest σ that makes an attack's errors no less likely than alpha; inf where any does.

    That q and T are as claimed is taken for granted, and right with probability 1 − alpha if they are. 0
    means that no noise explains so few errors: it is the sampling which is not as claimed.

    Args:
        event: q and T, and the claimed σ, where the search begins.
        counts: errors at one threshold, of a single audit.
        alpha: in (0, 1).
    """

    if float(p_value(counts, least_fnr=lambda fpr: 1 - fpr)) >= alpha:
        return math.inf
    return _largest(event, lambda curve: float(p_value(counts, least_fnr=curve.fnr)) >= alpha)


def noise_multiplier_one_run(event: GaussianEvent, guesses: Guesses, *, alpha: float) -> float:
    """The same from guesses of a single run (arXiv 2410.22235, with the curve of the plan)."""
    if not is_refuted(guesses, least_fpr=lambda tpr: tpr, alpha=alpha):
        return math.inf
    return _largest(event, lambda curve: not is_refuted(guesses, least_fpr=curve.least_fpr, alpha=alpha))


def _largest(event: GaussianEvent, allows: Callable[[Curve], bool]) -> float:
    """The largest σ whose curve allows what was seen: less noise allows more."""

    def possible(noise_multiplier: float) -> bool:
        return allows(_curve(noise_multiplier, event.sampling_rate, event.steps))

    if not possible(_LEAST_NOISE):
        return 0.0
    low, high = _LEAST_NOISE, event.noise_multiplier
    while possible(high):
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            return math.inf
    for _ in range(_HALVINGS):
        if high / low < 1.005:
            break
        middle = math.sqrt(low * high)
        low, high = (middle, high) if possible(middle) else (low, middle)
    return high
