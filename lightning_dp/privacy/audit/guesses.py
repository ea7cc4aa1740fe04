"""What a one-run audit counts: guesses about canaries that were each put in by the toss of a fair coin."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How an adversary did, each field of the leading shape (…) or a number.

    Attributes:
        canaries: m, whose coins were tossed.
        guessed: r ≤ m, of which the adversary said something; fixed without their coins.
        right: v ≤ r, of these right.
    """

    canaries: int
    guessed: int
    right: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, included: np.ndarray, *, guessed: int) -> "Guesses":
        """The highest ⌈r/2⌉ scores are guessed to be in, the lowest ⌊r/2⌋ to be out; of others nothing.

        Args:
            scores: (…, m), one a canary, higher where it seems to be in.
            included: (…, m) bool, the coins.
            guessed: r in [1, m], fixed before the scores were seen.

        Raises:
            ValueError: r is out of range.
        """
        scores, included = np.asarray(scores, dtype=float), np.asarray(included, dtype=bool)
        canaries = scores.shape[-1]
        if not 1 <= guessed <= canaries:
            raise ValueError(f"guessed is {guessed}; of {canaries} canaries it is between 1 and {canaries}")
        order = np.argsort(scores, axis=-1, kind="stable")
        there = np.take_along_axis(included, order, axis=-1)  # (…, m) from the least score on
        low, high = guessed // 2, guessed - guessed // 2
        right = (~there[..., :low]).sum(axis=-1) + there[..., canaries - high :].sum(axis=-1)
        return cls(canaries=canaries, guessed=guessed, right=right)
