"""μ from one training run with many canaries, where the mechanism's whole trade-off curve is used."""

from collections.abc import Callable

import numpy as np
from scipy.special import ndtr, ndtri

from lightning_dp.privacy.audit.guesses import Guesses

_HALVINGS = 30
_LARGEST = 20.0


def mu_one_run(guesses: Guesses, *, alpha: float) -> np.ndarray:
    """Lower bound (…) of μ, right with probability 1 − alpha where the mechanism's curve is a Gaussian's.

    Mahloujifar, Melis & Chaudhuri 2024, arXiv 2410.22235, Alg. 3 and Thm 3.2: how many guesses can be right
    under a trade-off curve follows from a recursion over their number, of which (ε, δ) is one point only. It
    says more than `one_run.py` of the same guesses, and assumes more: μ-GDP as a whole.
    """
    right = np.asarray(guesses.right)
    values, place = np.unique(right, return_inverse=True)

    def refuted(mu: np.ndarray) -> np.ndarray:
        return _refuted(values, guesses, least_fpr=lambda tpr: ndtr(ndtri(tpr) - mu), alpha=alpha)

    refuted_at_none = refuted(np.zeros(len(values)))
    low, high = np.zeros(len(values)), np.full(len(values), _LARGEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = refuted(middle)
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(refuted_at_none, low, 0.0)[place].reshape(right.shape)


def is_refuted(
    guesses: Guesses, *, least_fpr: Callable[[np.ndarray], np.ndarray], alpha: float
) -> np.ndarray:
    """Whether so many right guesses (…) are too many for a curve, with probability at most alpha by chance.

    Args:
        guesses: of one run each.
        least_fpr: from a true positive rate (…) to the least false positive rate that it costs under the
            curve, in both directions: that of "in" taken for "out" too.
        alpha: in (0, 1).
    """
    right = np.atleast_1d(np.asarray(guesses.right))
    return _refuted(right, guesses, least_fpr=least_fpr, alpha=alpha).reshape(np.shape(guesses.right))


def _refuted(
    right: np.ndarray, guesses: Guesses, *, least_fpr: Callable[[np.ndarray], np.ndarray], alpha: float
) -> np.ndarray:
    """The same for (u,) right guesses.

    r and h are what at least had to be true of c right guesses with a chance of α: shares of all m canaries
    whose guess is right, and wrong. Going down to fewer right ones, the curve says how much must be added.
    """
    guessed, canaries = guesses.guessed, guesses.canaries
    r = alpha * right / canaries
    h = alpha * (guessed - right) / canaries
    for i in range(int(right.max(initial=0)) - 1, -1, -1):
        further = np.maximum(h, least_fpr(np.minimum(r, 1.0)))
        grown = r + i / (guessed - i) * (further - h)
        below = i < right  # else the recursion of this many has not begun
        r, h = np.where(below, grown, r), np.where(below, further, h)
    return r + h > guessed / canaries
