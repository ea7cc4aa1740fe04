"""Counts, sums and second moments of vectors in groups, each a paid release: means and covariances by class.

The group of a vector is as private as the vector, so counts are released with the sums. A unit has one
share in all groups together, so the noise of each group is that of one release however many there are.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np

from lightning_dp.privacy.release import Mechanism, PerUnit

_ROWS_AT_ONCE = 4096
_WEIGHT_OF_COUNT = 0.25


class GroupSums(NamedTuple):
    """Noisy sums by group.

    Attributes:
        counts: (G,) fp64, noisy, so neither whole nor always above 0.
        sums: (G, d) fp64.
    """

    counts: np.ndarray
    sums: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Grouped(Mechanism[Any]):
    """What both have in common: one array (λ, 1 + d) a unit, each row a group in 0 … G−1 and a vector.

    A unit adds the mean over its rows of what each row adds. A row of no group (a negative number), and one
    with a NaN or an infinity, adds nothing; a vector longer than `max_norm` is shortened to it.

    Attributes:
        num_groups: G ≥ 1, public.
        dimension: d ≥ 1, public.
        max_norm: R > 0, in the vectors' unit.
    """

    num_groups: int
    dimension: int
    max_norm: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, value in (("num_groups", self.num_groups), ("dimension", self.dimension)):
            if value < 1:
                raise ValueError(f"{field} is {value}; it must be at least 1")
        if not 0 < self.max_norm < math.inf:
            raise ValueError(f"max_norm is {self.max_norm}; it must be a number above 0")

    def _rows(self, values: PerUnit) -> tuple[np.ndarray, np.ndarray, int]:
        """Groups (n,), vectors (n, d) within `max_norm`, and λ."""
        units = np.asarray(values)
        if units.ndim != 3 or units.shape[2] != 1 + self.dimension:
            raise ValueError(
                f"values has the shape {units.shape}; it must be (units, rows, {1 + self.dimension}): a "
                "group and a vector a row"
            )
        rows = units.reshape(-1, 1 + self.dimension)
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, 0] >= 0) & (rows[:, 0] < self.num_groups)]
        vectors = rows[:, 1:].astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors *= self.max_norm / np.maximum(norms, self.max_norm)
        return rows[:, 0].astype(np.int64), vectors, units.shape[1]


@final
@dataclass(frozen=True, kw_only=True)
class GroupedSums(_Grouped):
    """Rows and their sum in each group.

    A row adds R/4 to the count, which is divided by that again, and its vector to the sum: together at most
    1.03·R, so that the noise on sums is what they alone would cost, and that on counts is 4.1·σ rows.
    """

    @property
    def sensitivity(self) -> float:
        return math.hypot(1, _WEIGHT_OF_COUNT) * self.max_norm

    def sums(self, values: PerUnit) -> np.ndarray:
        groups, vectors, rows = self._rows(values)
        found = np.zeros((self.num_groups, 1 + self.dimension))
        found[:, 0] = _WEIGHT_OF_COUNT * self.max_norm * np.bincount(groups, minlength=self.num_groups)
        for group in range(self.num_groups):
            found[group, 1:] = vectors[groups == group].sum(axis=0)
        return found.reshape(-1) / rows

    def answer(self, noisy: np.ndarray) -> GroupSums:
        table = noisy.reshape(self.num_groups, 1 + self.dimension)
        return GroupSums(counts=table[:, 0] / (_WEIGHT_OF_COUNT * self.max_norm), sums=table[:, 1:])


@final
@dataclass(frozen=True, kw_only=True)
class GroupedSecondMoments(_Grouped):
    """Σ x·xᵀ in each group, (G, d, d) fp64, symmetric.

    Released is the upper triangle with what is off the diagonal times √2, which is as long as x·xᵀ: ‖x‖².
    The sensitivity is R², and noise on an entry has the deviation σ·R² on the diagonal and σ·R²/√2 off it.
    """

    @property
    def sensitivity(self) -> float:
        return self.max_norm**2

    def sums(self, values: PerUnit) -> np.ndarray:
        groups, vectors, rows = self._rows(values)
        upper, scale = self._triangle()
        found = []
        for group in range(self.num_groups):
            own = vectors[groups == group]
            total = np.zeros((self.dimension, self.dimension))
            for start in range(0, len(own), _ROWS_AT_ONCE):
                part = own[start : start + _ROWS_AT_ONCE]
                total += part.T @ part
            found.append(total[upper] * scale)
        return np.concatenate(found) / rows

    def answer(self, noisy: np.ndarray) -> np.ndarray:
        upper, scale = self._triangle()
        found = np.zeros((self.num_groups, self.dimension, self.dimension))
        found[:, upper[0], upper[1]] = noisy.reshape(self.num_groups, -1) / scale
        found[:, upper[1], upper[0]] = found[:, upper[0], upper[1]]
        return found

    def _triangle(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        upper = np.triu_indices(self.dimension)
        return upper, np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
