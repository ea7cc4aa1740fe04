"""Whether two error counts are too small for a trade-off curve, taken together and not one by one."""

from collections.abc import Callable

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, ndtri

from lightning_dp.privacy.audit.counts import Counts

_CELLS = 96
_BEYOND = 1e-10


def p_value(counts: Counts, *, least_fnr: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """At most the probability (…) of so few errors, where FNR ≥ least_fnr(FPR).

    Of each FPR x that there may be, P[Bin(n, x) ≤ FP] and P[Bin(k, least_fnr(x)) ≤ FN] are independent
    p-values; Fisher's combination of them (Statistical Methods for Research Workers, 4th ed. 1932, §21.1) is
    one p-value, and the largest over all x is one whatever x is. Two bounds of confidence 1 − α/2 each give
    away about a third more, since both rates are not at their worst at once.

    It errs upwards: between neighbouring x the larger of either factor counts.

    Args:
        counts: at a threshold that was fixed without these scores.
        least_fnr: from FPR (…, x) to the least FNR (…, x) of the curve, which falls.
    """
    fp, n = np.asarray(counts.false_positives, dtype=float), np.asarray(counts.nulls, dtype=float)
    fn, k = np.asarray(counts.false_negatives, dtype=float), np.asarray(counts.canaries, dtype=float)
    low = np.where(fp > 0, betaincinv(np.maximum(fp, 1e-9), n - fp + 1, _BEYOND), 1e-12)
    high = np.where(fp < n, betaincinv(fp + 1, np.maximum(n - fp, 1e-9), 1 - _BEYOND), 1 - 1e-12)
    share = np.linspace(0, 1, _CELLS)
    nodes = ndtr(ndtri(low)[..., None] * (1 - share) + ndtri(high)[..., None] * share)  # (…, x)
    few_positives = _at_most(fp, n, nodes)  # falls in x
    few_negatives = _at_most(fn, k, np.clip(least_fnr(nodes), 0.0, 1.0))  # grows in x
    one = np.ones((*fp.shape, 1))
    product = (np.concatenate([one, few_positives], axis=-1)) * np.concatenate([few_negatives, one], axis=-1)
    largest = product.max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(largest > 0, largest * (1 - np.log(largest)), 0.0)


def _at_most(events: np.ndarray, trials: np.ndarray, share: np.ndarray) -> np.ndarray:
    """P[Bin(trials, share) ≤ events], of shapes (…), (…) and (…, x)."""
    events, trials = events[..., None], trials[..., None]
    inside = betainc(np.maximum(trials - events, 1e-9), events + 1, 1 - share)
    return np.where(events >= trials, 1.0, inside)
