"""Whether samples are nearer to the rows that a model was trained on than to rows it never saw."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """What nearest neighbours say.

    Attributes:
        samples: how many were looked at.
        nearer_to_train: of these, whose nearest row was trained on.
        expected: how many to expect of a model that does not know which rows those are.
        p_value: the probability of as many by chance.
    """

    samples: int
    nearer_to_train: int
    expected: float
    p_value: float


def nearest_rows(
    samples: np.ndarray, *, train: np.ndarray, held_out: np.ndarray, permutations: int = 2000
) -> Nearness:
    """A permutation test of memorisation: exact in level whatever samples, rows and distances are like.

    Rows were divided into train and held-out by a coin, so for a model that knows nothing of it every other
    division is as likely. How often a row is some sample's nearest does not depend on the division; the
    statistic is how often it is a trained one (nearest neighbours as in Carlini et al. 2023, arXiv
    2301.13188, Sec. 4; permutations as in Fisher 1935). No bound on ε, and no proof of honesty: a copy may be
    one that Euclidean distances don't show.

    Args:
        samples: (S, …) numbers.
        train: (n, …) rows, exchangeable with `held_out` before training.
        held_out: (k, …) rows.
        permutations: ≥ 1.

    Raises:
        ValueError: there are no samples, or no rows of a kind.
    """
    for name, rows in (("samples", samples), ("train rows", train), ("held-out rows", held_out)):
        if not len(rows):
            raise ValueError(f"there are no {name} to compare: give at least one")
    flat = [np.asarray(rows, dtype=float).reshape(len(rows), -1) for rows in (samples, train, held_out)]
    _, nearest = cKDTree(np.concatenate(flat[1:])).query(flat[0])
    total = len(train) + len(held_out)
    times = np.bincount(nearest, minlength=total)  # how often each row is nearest
    seen = int(times[: len(train)].sum())
    rng = np.random.default_rng()
    shuffled = rng.permuted(np.broadcast_to(times, (permutations, total)), axis=1)
    as_many = int((shuffled[:, : len(train)].sum(axis=1) >= seen).sum())
    return Nearness(
        samples=len(samples),
        nearer_to_train=seen,
        expected=len(samples) * len(train) / total,
        p_value=(1 + as_many) / (1 + permutations),
    )
