"""What scores show: a bound by every estimator, beside what is claimed, and one verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_dp.audits.white_box import Scores
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.audit.bayesian import epsilon_credible
from lightning_dp.privacy.audit.classic import epsilon_classic
from lightning_dp.privacy.audit.counts import Counts, count
from lightning_dp.privacy.audit.curve import noise_multiplier_one_run, noise_multiplier_upper_bound
from lightning_dp.privacy.audit.gaussian import epsilon_of_mu, mu_lower_bound
from lightning_dp.privacy.audit.guesses import Guesses
from lightning_dp.privacy.audit.one_run import epsilon_one_run

MEANINGS = {
    "step": "a step shows more of a canary than its noise allows: noise too small or contributions too large",
    "run": "whether a canary was trained on shows more than the accounted mechanism allows",
    "batches": "the others' batches tell which one is the canary's: they are no independent coins",
    "seed": "the published seed tells batches or noise",
}
"""By adversary, what a bound above the claim says."""

_BY_GAUSSIAN = ("Gaussian", "classic", "Bayesian")
_BY_CURVE = ("plan's curve", "classic", "Bayesian", "one run", "f-DP one run")
_SHARE_GUESSED = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One estimator on the scores of one adversary.

    Attributes:
        adversary: whose scores.
        estimator: its name.
        nulls: scores without a canary.
        canaries: scores with one.
        alpha: the probability of a bound above the truth.
        delta: δ of both ε.
        bound: ε at least; inf where nothing explains the scores.
        claimed: ε at most, by the accountant, of what the adversary saw: one step for "step", else the run.
    """

    adversary: str
    estimator: str
    nulls: int
    canaries: int
    alpha: float
    delta: float
    bound: float
    claimed: float

    @property
    def exceeds(self) -> bool:
        """Whether more was shown than is claimed."""
        return self.bound > self.claimed

    @property
    def verdict(self) -> str:
        """In a few words."""
        meaning = MEANINGS.get(self.adversary, "losses of the finished model tell who was trained on")
        return f"ABOVE THE CLAIM: {meaning}" if self.exceeds else "within the claim"


def judge(all_scores: Sequence[Scores], *, delta: float, alpha: float) -> list[Row]:
    """Every estimator that fits, so that none of all is above the truth with probability 1 − alpha.

    Args:
        all_scores: of an audit.
        delta: δ of what is claimed.
        alpha: for all rows together; each gets an equal part.
    """
    wanted = [(scores, name) for scores in all_scores for name in _estimators(scores)]
    each = alpha / len(wanted)
    return [
        Row(
            adversary=scores.adversary,
            estimator=name,
            nulls=len(scores.null),
            canaries=len(scores.canary),
            alpha=each,
            delta=delta,
            bound=_bound(name, scores, delta=delta, alpha=each),
            claimed=epsilon_pld([scores.event], delta),
        )
        for scores, name in wanted
    ]


def counts_of(scores: Scores) -> Counts:
    """Errors at 0, which was fixed before there were scores."""
    return count(scores.null, scores.canary, threshold=0.0)


def _estimators(scores: Scores) -> tuple[str, ...]:
    return _BY_GAUSSIAN if scores.adversary == "step" else _BY_CURVE


def _bound(name: str, scores: Scores, *, delta: float, alpha: float) -> float:
    counts = counts_of(scores)
    if name == "Gaussian":
        return float(epsilon_of_mu(mu_lower_bound(counts, alpha=alpha), delta=delta))
    if name == "classic":
        return float(epsilon_classic(counts, delta=delta, alpha=alpha))
    if name == "Bayesian":
        return float(epsilon_credible(counts, delta=delta, alpha=alpha))
    if name == "plan's curve":
        return _epsilon(scores.event, noise_multiplier_upper_bound(scores.event, counts, alpha=alpha), delta)
    guesses = _guesses(scores)
    if name == "one run":
        return float(epsilon_one_run(guesses, delta=delta, alpha=alpha))
    return _epsilon(scores.event, noise_multiplier_one_run(scores.event, guesses, alpha=alpha), delta)


def _guesses(scores: Scores) -> Guesses:
    values = np.concatenate([scores.null, scores.canary])
    included = np.arange(len(values)) >= len(scores.null)
    order = np.random.default_rng().permutation(len(values))  # equal scores come in no order
    guessed = max(1, len(values) // _SHARE_GUESSED)
    return Guesses.of(values[order], included[order], guessed=guessed)


def _epsilon(event: GaussianEvent, noise_multiplier: float, delta: float) -> float:
    """Of the same sampling with that noise."""
    if math.isinf(noise_multiplier):
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    other = GaussianEvent(
        noise_multiplier=noise_multiplier, sampling_rate=event.sampling_rate, steps=event.steps
    )
    return epsilon_pld([other], delta)
