"""A generation of synthetic samples with their noisy votes, and how the next one is chosen from it."""

from dataclasses import dataclass

import numpy as np

from lightning_dp.evolution.generations import Selection


@dataclass(frozen=True, kw_only=True)
class Population:
    """Public: what is private in it has been paid for.

    Attributes:
        samples: (M, …), as the API keeps them: images, or what it renders them from.
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

    def choose(
        self,
        labels: np.ndarray,
        *,
        threshold: float,
        rng: np.random.Generator,
        selection: Selection = "sample",
        children: int = 1,
    ) -> np.ndarray:
        """(n,) numbers of parents, one for each of `labels`.

        By `sample` ⌈n/L⌉ are drawn for a class that is asked for n times, with replacement and in proportion
        to its weights, and have L children each. By `rank` the ⌈m/L⌉ of a class's m samples with the most
        votes share the n children evenly: L each, where the next generation is as large as this one.

        Args:
            labels: (n,), each of them a label of the population.
            threshold: as in `weights`, of which `rank` makes no use.
            rng: public randomness, of which `rank` needs none.
            selection: as in `Generations`; `rank` after a vote only.
            children: L ≥ 1.
        """
        weights = self.weights(threshold=threshold)
        parents = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            own = np.flatnonzero(self.labels == label)
            wanted = np.flatnonzero(labels == label)
            if selection == "rank":
                assert self.votes is not None
                best = own[np.argsort(-self.votes[own], kind="stable")]
                chosen = best[: -(-len(own) // children)]
            else:
                share = weights[own] / weights[own].sum()
                chosen = rng.choice(own, size=-(-len(wanted) // children), p=share)
            parents[wanted] = np.resize(chosen, len(wanted))  # over and over
        return parents


def balanced(num_samples: int, *, num_classes: int) -> np.ndarray:
    """(n,) labels, each class as often as the others but for the remainder; −1 where there are none.

    How often a class occurs among the private rows is private, so samples don't follow it.
    """
    if num_classes == 0:
        return np.full(num_samples, -1)
    return np.arange(num_samples) % num_classes
