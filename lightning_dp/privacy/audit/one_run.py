"""ε from one training run in which many canaries were tossed for, with no assumption about the mechanism."""

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from lightning_dp.privacy.audit.guesses import Guesses

_HALVINGS = 50
_LARGEST = 50.0


def epsilon_one_run(guesses: Guesses, *, delta: float, alpha: float) -> np.ndarray:
    """Lower bound (…) of ε at δ, right with probability 1 − alpha.

    Steinke, Nasr & Jagielski 2023, arXiv 2305.08846, Thm 5.2: under (ε, δ)-DP the number of right guesses is
    at most Binomial(r, e^ε / (1 + e^ε)) but for δ. The largest ε at which as many as v right ones have a
    probability below alpha (`p_value`) is refuted, and so are all smaller ones.

    Of r guesses it never says more than about ln(r / ln(1/α)).
    """
    right = np.asarray(guesses.right)
    values, place = np.unique(right, return_inverse=True)
    bounds = np.array([_bound(int(value), guesses, delta=delta, alpha=alpha) for value in values])
    return bounds[place].reshape(right.shape)


def p_value(epsilon: float, *, right: int, guessed: int, canaries: int, delta: float) -> float:
    """At most the probability of v or more right guesses of r under (ε, δ)-DP.

    P[B ≥ v] + 2mδ · max_i P[v > B ≥ v − i] / i with B ~ Binomial(r, e^ε / (1 + e^ε)); at most 1.
    """
    chance = expit(epsilon)
    p = binom.sf(right - 1, guessed, chance)
    if delta > 0 and right > 0:
        steps = np.arange(1, right + 1)
        below = binom.sf(right - steps - 1, guessed, chance) - p
        p = p + 2 * canaries * delta * max(0.0, float(np.max(below / steps)))
    return float(min(1.0, p))


def _bound(right: int, guesses: Guesses, *, delta: float, alpha: float) -> float:
    def refuted(epsilon: float) -> bool:
        p = p_value(epsilon, right=right, guessed=guesses.guessed, canaries=guesses.canaries, delta=delta)
        return p < alpha

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
