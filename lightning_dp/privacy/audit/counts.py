"""From scores to errors at a threshold, and what their true shares may be.

Legend: (…, n) scores of n null trials (no canary), (…, k) of k trials with one; leading dimensions are
independent audits.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, ndtri

_CANDIDATES = 64


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Errors of one threshold, each field of the leading shape (…).

    Attributes:
        false_positives: null trials whose score is above it.
        nulls: null trials.
        false_negatives: trials with a canary whose score is not above it.
        canaries: trials with a canary.
    """

    false_positives: np.ndarray
    nulls: np.ndarray
    false_negatives: np.ndarray
    canaries: np.ndarray

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Observed (FPR, FNR)."""
        return self.false_positives / self.nulls, self.false_negatives / self.canaries

    def upper_rates(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Upper bounds of (FPR, FNR) that hold together with probability 1 − alpha (α/2 each)."""
        return (
            upper_share(self.false_positives, self.nulls, alpha=alpha / 2),
            upper_share(self.false_negatives, self.canaries, alpha=alpha / 2),
        )


def upper_share(events: np.ndarray, trials: np.ndarray, *, alpha: float) -> np.ndarray:
    """The one-sided upper bound of a binomial share (Clopper & Pearson 1934, Biometrika 26, p. 404).

    It is at least the true share with probability 1 − alpha, whatever that is; 1 where every trial was an
    event.
    """
    events, trials = np.asarray(events, dtype=float), np.asarray(trials, dtype=float)
    return np.where(
        events >= trials, 1.0, betaincinv(events + 1, np.maximum(trials - events, 1e-9), 1 - alpha)
    )


def count(null: np.ndarray, canary: np.ndarray, *, threshold: np.ndarray | float) -> Counts:
    """Errors at a threshold that was fixed without these scores.

    Args:
        null: (…, n) scores.
        canary: (…, k) scores.
        threshold: (…) or one number for all.

    Raises:
        ValueError: there are no scores of a kind, or some are no numbers.
    """
    null, canary = np.asarray(null, dtype=float), np.asarray(canary, dtype=float)
    _check(null, "null")
    _check(canary, "canary")
    at = np.asarray(threshold, dtype=float)[..., None]
    false_positives = (null > at).sum(axis=-1)
    false_negatives = (canary <= at).sum(axis=-1)
    return Counts(
        false_positives=false_positives,
        nulls=np.full(false_positives.shape, null.shape[-1]),
        false_negatives=false_negatives,
        canaries=np.full(false_negatives.shape, canary.shape[-1]),
    )


def count_held_out(null: np.ndarray, canary: np.ndarray, *, share: float = 0.2) -> Counts:
    """Errors at the threshold of `hold_out`, on the scores that did not choose it."""
    return count(*hold_out(null, canary, share=share), threshold=0.0)


def hold_out(null: np.ndarray, canary: np.ndarray, *, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Some scores choose a threshold; the others, less the threshold, can be counted at 0.

    A threshold that is chosen on the scores it is counted on finds something in pure noise. Here the first
    `share` of each kind chooses: of the scores themselves as thresholds, at most 64, the one with the largest
    Φ⁻¹(1 − FPR) − Φ⁻¹(FNR) at the upper bounds of its rates. Scores must come in no order that tells
    anything.

    Args:
        null: (…, n) scores, n ≥ 2.
        canary: (…, k) scores, k ≥ 2.
        share: in (0, 1), of the scores that choose.
    """
    null, canary = np.asarray(null, dtype=float), np.asarray(canary, dtype=float)
    first_null, null = _split(null, share, "null")
    first_canary, canary = _split(canary, share, "canary")
    pooled = np.sort(np.concatenate([first_null, first_canary], axis=-1), axis=-1)
    places = np.linspace(0, pooled.shape[-1] - 1, min(_CANDIDATES, pooled.shape[-1])).round().astype(int)
    candidates = pooled[..., places]  # (…, t)
    tried = count(first_null[..., None, :], first_canary[..., None, :], threshold=candidates)
    false_positives, false_negatives = tried.upper_rates(0.05)
    best = (ndtri(1 - false_positives) - ndtri(false_negatives)).argmax(axis=-1)
    threshold = np.take_along_axis(candidates, best[..., None], axis=-1)
    return null - threshold, canary - threshold


def _split(scores: np.ndarray, share: float, what: str) -> tuple[np.ndarray, np.ndarray]:
    _check(scores, what)
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it is of the scores that choose the threshold: above 0, below 1")
    number = scores.shape[-1]
    if number < 2:
        raise ValueError(f"{number} {what} score(s) can't both choose and be counted: give 2 or more")
    chosen = min(number - 1, max(1, round(share * number)))
    return scores[..., :chosen], scores[..., chosen:]


def _check(scores: np.ndarray, what: str) -> None:
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"there are no {what} scores: an audit needs trials with and without a canary")
    if np.isnan(scores).any():
        raise ValueError(f"some {what} scores are NaN: give −inf where an attack says nothing")
