"""A generation of synthetic samples with their noisy votes, and how the next one is chosen from it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Population:
    """Public: what is private in it has been paid for.

    Attributes:
        samples: (M, …).
        labels: (M,) int64, −1 for none.
        votes: (M,) noisy; None before the first vote.
    """

    samples: np.ndarray
    labels: np.ndarray
    votes: np.ndarray | None = None

    def weights(self, *, threshold: float) -> np.ndarray:
        """(M,) max(votes − threshold, 0); equal ones in a class in which no sample has more, or before votes.

        Most samples are nobody's nearest. The threshold keeps noise from giving them children.

        Args:
            threshold: H ≥ 0, in votes.
        """
        if self.votes is None:
            return np.ones(len(self.labels))
        weights = np.maximum(self.votes - threshold, 0.0)
        for label in np.unique(self.labels):
            own = self.labels == label
            if not weights[own].any():
                weights[own] = 1.0
        return weights

    def choose(self, labels: np.ndarray, *, threshold: float, rng: np.random.Generator) -> np.ndarray:
        """(n,) numbers of parents, one for each of `labels`, in proportion to their class's weights.

        Args:
            labels: (n,), each of them a label of the population.
            threshold: as in `weights`.
            rng: public randomness.
        """
        weights = self.weights(threshold=threshold)
        parents = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            own = np.flatnonzero(self.labels == label)
            wanted = np.flatnonzero(labels == label)
            share = weights[own] / weights[own].sum()
            parents[wanted] = rng.choice(own, size=len(wanted), p=share)
        return parents


def balanced(num_samples: int, *, num_classes: int) -> np.ndarray:
    """(n,) labels, each class as often as the others but for the remainder; −1 where there are none.

    How often a class occurs among the private rows is private, so samples don't follow it.
    """
    if num_classes == 0:
        return np.full(num_samples, -1)
    return np.arange(num_samples) % num_classes
