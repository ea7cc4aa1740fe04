"""The classic bound: any attack's two error rates, and no assumption about the mechanism."""

import numpy as np

from lightning_dp.privacy.audit.counts import Counts


def epsilon_classic(counts: Counts, *, delta: float, alpha: float) -> np.ndarray:
    """Lower bound (…) of ε at δ from errors, right with probability 1 − alpha.

    Under (ε, δ)-DP 1 − FNR ≤ e^ε·FPR + δ and 1 − FPR ≤ e^ε·FNR + δ (Kairouz, Oh & Viswanath 2015, arXiv
    1311.0776, Thm 2.1). With Clopper and Pearson's upper bounds in their place, ε ≥ ln((1 − FNR − δ) / FPR),
    and the other way round (Jagielski, Ullman & Oprea 2020, arXiv 2006.07709, Alg. 2; Nasr et al. 2021, arXiv
    2101.04535).

    Of n scores of a kind it never says more than about ln(n / ln(2/α)), however bad the mechanism.
    """
    false_positives, false_negatives = counts.upper_rates(alpha)
    return epsilon_of_rates(false_positives, false_negatives, delta=delta)


def epsilon_of_rates(fpr: np.ndarray, fnr: np.ndarray, *, delta: float) -> np.ndarray:
    """The least ε ≥ 0 whose region of error rates holds (fpr, fnr)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one = np.log(np.maximum(1 - delta - fnr, 0) / fpr)
        other = np.log(np.maximum(1 - delta - fpr, 0) / fnr)
    return np.asarray(np.maximum(0.0, np.fmax(one, other)))
