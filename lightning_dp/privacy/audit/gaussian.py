"""Gaussian differential privacy: a mechanism that is known to add Gaussian noise, of unknown size.

Where scores are a canary's own direction in released gradients, the mechanism is Gaussian by what is known
of it, and one point of its trade-off curve gives the whole. That is why some hundred scores are enough here.
"""

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from lightning_dp.privacy.audit.counts import Counts
from lightning_dp.privacy.audit.joint import p_value

_HALVINGS = 80
_HALVINGS_OF_MU = 24
_LARGEST = 20.0


def mu_lower_bound(counts: Counts, *, alpha: float) -> np.ndarray:
    """Lower bound (…) of μ, right with probability 1 − alpha where the mechanism is μ-GDP.

    The largest μ whose curve FNR ≥ Φ(Φ⁻¹(1 − FPR) − μ) (Dong, Roth & Su 2022, arXiv 1905.02383, Def. 4) makes
    the errors less likely than alpha. Nasr et al. 2023, arXiv 2302.07956, eq. 5, bound the two rates apart
    (`mu_of_rates`), which says less of the same scores: see `joint.p_value`. The threshold must not come from
    the scores that are counted: see `counts`.
    """
    shape = np.shape(counts.false_positives)
    table = np.stack(
        [
            np.ravel(x)
            for x in (counts.false_positives, counts.nulls, counts.false_negatives, counts.canaries)
        ],
        axis=-1,
    )
    rows, place = np.unique(table, axis=0, return_inverse=True)
    own = Counts(
        false_positives=rows[:, 0], nulls=rows[:, 1], false_negatives=rows[:, 2], canaries=rows[:, 3]
    )

    def refuted(mu: np.ndarray) -> np.ndarray:
        return p_value(own, least_fnr=lambda fpr: ndtr(ndtri(1 - fpr) - mu[:, None])) < alpha

    at_none = refuted(np.zeros(len(rows)))
    low, high = np.zeros(len(rows)), np.full(len(rows), _LARGEST)
    for _ in range(_HALVINGS_OF_MU):
        middle = (low + high) / 2
        above = refuted(middle)
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(at_none, low, 0.0)[np.ravel(place)].reshape(shape)


def mu_of_rates(fpr: np.ndarray, fnr: np.ndarray) -> np.ndarray:
    """Φ⁻¹(1 − FPR) − Φ⁻¹(FNR), the μ at whose curve two error rates lie; −∞ where one is 1."""
    with np.errstate(invalid="ignore"):
        found = np.nan_to_num(ndtri(1 - fpr) - ndtri(fnr), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return np.asarray(found)


def delta_of_mu(mu: np.ndarray | float, epsilon: np.ndarray | float) -> np.ndarray:
    """δ(ε) of μ-GDP: Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2) (arXiv 1905.02383, Cor. 1)."""
    mu, epsilon = np.asarray(mu, dtype=float), np.asarray(epsilon, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = epsilon / mu
        value = ndtr(-ratio + mu / 2) - np.exp(epsilon + log_ndtr(-ratio - mu / 2))
    return np.where(mu > 0, value, 0.0)


def epsilon_of_mu(mu: np.ndarray | float, *, delta: float) -> np.ndarray:
    """ε at δ of μ-GDP; 0 where μ is 0 or δ is met without any."""
    mu = np.asarray(mu, dtype=float)
    finite = np.where(np.isfinite(mu), mu, 0.0)
    low, high = np.zeros(finite.shape), finite**2 / 2 + 40 * finite  # there δ is below 1e-300
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = delta_of_mu(finite, middle) > delta
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(np.isfinite(mu), np.where(delta_of_mu(finite, 0.0) > delta, low, 0.0), np.inf)


def mu_of_epsilon(epsilon: float, *, delta: float) -> float:
    """The μ whose ε at δ is `epsilon` ≥ 0."""
    low, high = 0.0, 1.0
    while float(epsilon_of_mu(high, delta=delta)) < epsilon:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(epsilon_of_mu(middle, delta=delta)) < epsilon else (low, middle)
    return high
