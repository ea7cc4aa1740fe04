"""What a renderer draws an image from: numbers and choices, drawn at random and varied by a degree."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Parameter(ABC):
    """One column of a renderer's samples.

    Attributes:
        name: under which the renderer knows it.
    """

    name: str

    @abstractmethod
    def random(self, count: int, *, rng: np.random.Generator) -> np.ndarray:
        """(count,) fp64 values, anywhere."""

    @abstractmethod
    def vary(self, values: np.ndarray, *, degree: float, rng: np.random.Generator) -> np.ndarray:
        """(n,) values near the given ones: themselves at degree 0."""


@final
@dataclass(frozen=True, kw_only=True)
class Number(Parameter):
    """Uniform between bounds; a variation moves it, uniformly, and stays between them.

    Attributes:
        low, high: low ≤ high.
        reach: ≥ 0, how far at most it moves at degree 1, in its own unit.
    """

    low: float
    high: float
    reach: float

    def random(self, count: int, *, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(self.low, self.high, count)

    def vary(self, values: np.ndarray, *, degree: float, rng: np.random.Generator) -> np.ndarray:
        moved = values + rng.uniform(-1, 1, len(values)) * self.reach * degree
        return moved.clip(self.low, self.high)


@final
@dataclass(frozen=True, kw_only=True)
class Choice(Parameter):
    """One of several without an order, by number; a variation draws it anew with the degree as its chance.

    Attributes:
        count: ≥ 1.
    """

    count: int

    def random(self, count: int, *, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(self.count, size=count).astype(np.float64)

    def vary(self, values: np.ndarray, *, degree: float, rng: np.random.Generator) -> np.ndarray:
        return np.where(rng.random(len(values)) < degree, self.random(len(values), rng=rng), values)
