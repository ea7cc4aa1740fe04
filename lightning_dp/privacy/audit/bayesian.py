"""What to believe of ε after seeing errors: the posterior of both error rates, and the ε that follows."""

from typing import Literal

import numpy as np
from scipy.special import betainc, betaincinv

from lightning_dp.privacy.audit.counts import Counts

_NODES = 64
_HALVINGS = 40
_LARGEST = 30.0


Prior = Literal["cautious", "jeffreys"]


def epsilon_credible(counts: Counts, *, delta: float, alpha: float, prior: Prior = "cautious") -> np.ndarray:
    """The α-quantile (…) of ε at δ: it is at least so large with a posterior probability of 1 − alpha.

    Zanella-Béguelin et al. 2022, arXiv 2206.05199, Sec. 3: FPR and FNR have independent posteriors, and ε is
    what the worse of the two conditions of (ε, δ)-DP asks for. The paper's prior is Jeffreys',
    FPR ~ Beta(½ + FP, ½ + TN), under which about α of null scores give a bound above 0, at times a little
    more. The cautious one, Beta(1 + FP, TN), has Clopper and Pearson's upper bound as its quantile; the
    bound is still above `classic`'s, since the two rates are rarely at their worst together. It is a credible
    bound: docs/results/audit.md measures how often it is above the truth, nothing proves it.

    Args:
        counts: errors at one threshold.
        delta: δ ≥ 0.
        alpha: in (0, 1).
        prior: of both rates.
    """
    shape = np.shape(counts.false_positives)
    errors, others = (0.5, 0.5) if prior == "jeffreys" else (1.0, 1e-6)
    parameters = np.stack(
        [
            errors + np.ravel(counts.false_positives),
            others + np.ravel(counts.nulls - counts.false_positives),
            errors + np.ravel(counts.false_negatives),
            others + np.ravel(counts.canaries - counts.false_negatives),
        ],
        axis=-1,
    )
    rows, place = np.unique(parameters, axis=0, return_inverse=True)
    nodes = (np.arange(_NODES) + 0.5) / _NODES
    fpr = betaincinv(rows[:, :1], rows[:, 1:2], nodes)  # (u, nodes)
    low, high = np.zeros(len(rows)), np.full(len(rows), _LARGEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = _probability_below(middle, fpr, rows, delta=delta) >= alpha
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return low[np.ravel(place)].reshape(shape)


def _probability_below(epsilon: np.ndarray, fpr: np.ndarray, rows: np.ndarray, *, delta: float) -> np.ndarray:
    """P[ε ≤ epsilon] (u,): the share of (FPR, FNR) in the region of (epsilon, δ)-DP."""
    growth = np.exp(epsilon)[:, None]
    least = np.maximum(1 - delta - growth * fpr, (1 - delta - fpr) / growth)  # of FNR
    return np.asarray((1 - betainc(rows[:, 2:3], rows[:, 3:4], np.clip(least, 0.0, 1.0))).mean(axis=-1))
