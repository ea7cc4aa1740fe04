"""μ from one training run with many canaries, where the mechanism's whole trade-off curve is used."""

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
    refuted_at_none = _refuted(np.zeros(len(values)), values, guesses, alpha=alpha)
    low, high = np.zeros(len(values)), np.full(len(values), _LARGEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        refuted = _refuted(middle, values, guesses, alpha=alpha)
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return np.where(refuted_at_none, low, 0.0)[place].reshape(right.shape)


def _refuted(mu: np.ndarray, right: np.ndarray, guesses: Guesses, *, alpha: float) -> np.ndarray:
    """Whether c right guesses of g are too many for μ-GDP, each of the shape (u,).

    r and h are what at least had to be true of c right guesses with a chance of α: shares of all m canaries
    whose guess is right, and wrong. Going down to fewer right ones, the curve says how much must be added.
    """
    guessed, canaries = guesses.guessed, guesses.canaries
    r = alpha * right / canaries
    h = alpha * (guessed - right) / canaries
    for i in range(int(right.max(initial=0)) - 1, -1, -1):
        further = np.maximum(h, ndtr(ndtri(np.minimum(r, 1.0)) - mu))
        grown = r + i / (guessed - i) * (further - h)
        below = i < right  # else the recursion of this many has not begun
        r, h = np.where(below, grown, r), np.where(below, further, h)
    return r + h > guessed / canaries
