"""What choosing the best of many private runs costs, when their number is drawn at random and kept secret.

A search releases its best run alone. With a number of runs K that nobody can foresee, what one unit does to
the choice is bounded by what it does to one run and to the tail of its scores (Liu & Talwar 2019, arXiv
1811.07971; Papernot & Steinke 2021, arXiv 2110.03620), and not by the sum over all runs.

The bound, of hockey-stick divergences as those of Koskela et al. 2024 (arXiv 2402.06701): the best run comes
out at y with density q(y) f'(Q(≤ y)), where f(x) = E[x^K], q is one run's density and Q(≤ y) the chance of
a run that is no better. For the truncated negative binomial f'(x) ∝ (1 − (1 − γ) x)^(−η−1), and of any
neighbour's run 1 − Q'(≤ y) ≤ e^ε̂ (1 − Q(≤ y)) + δ̂ with (ε̂, δ̂) on the profile of one run, so that
f'(Q(≤ y)) ≤ e^c f'(Q'(≤ y)), c = (η + 1) ln(e^ε̂ + δ̂ (1 − γ)/γ). As f' ≤ f'(1) = E[K],

    δ_best(ε + c) ≤ E[K] · δ_one(ε)    for every ε, and any ε̂ ≥ 0.

Scope: every run is the same randomised procedure, the random choice of its settings included; runs are
independent; scores depend on what a run released and on public data alone (a score from private rows has to
be paid for within the run), and equal ones are decided at random. Nothing else of the runs is released,
their number neither.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import brentq

from lightning_dp.privacy.accounting import Event, profile_of

_TRIED = 4001  # values of ε̂


@dataclass(frozen=True, kw_only=True)
class NumberOfRuns:
    """The truncated negative binomial distribution of the number of runs, K ≥ 1 (Papernot & Steinke, Def. 1).

    Attributes:
        shape: η > −1. 0 is the logarithmic distribution, 1 the geometric one. A smaller one costs less, and
            leaves more of its mean to rare long searches: half of them are of a few runs.
        parameter: γ in (0, 1); a smaller one is a longer search.
    """

    shape: float
    parameter: float

    def __post_init__(self) -> None:
        if not -1 < self.shape < math.inf:
            raise ValueError(f"shape is {self.shape}; it must be a number above -1, such as 0 or 1.")
        if not 0 < self.parameter < 1:
            raise ValueError(f"parameter is {self.parameter}; it must be above 0 and below 1.")

    @classmethod
    def of_mean(cls, mean: float, *, shape: float = 0.0) -> Self:
        """The distribution with this mean.

        Args:
            mean: > 1 runs.
            shape: as the class has it.

        Raises:
            ValueError: there is none.
        """
        if not 1 < mean < math.inf:
            raise ValueError(f"The mean number of runs is {mean}; it must be a number above 1.")

        def excess(exponent: float) -> float:
            return math.log(cls(shape=shape, parameter=math.exp(-exponent)).mean / mean)

        longest = 1.0
        while excess(longest) < 0:
            longest *= 2
            if longest > 600:
                raise ValueError(
                    f"No number of runs of shape {shape} has the mean {mean}: take a larger shape."
                )
        return cls(shape=shape, parameter=math.exp(-brentq(excess, 1e-12, longest, xtol=1e-14, rtol=1e-12)))

    @property
    def mean(self) -> float:
        """E[K]."""
        left = -math.expm1(math.log(self.parameter))  # 1 − γ
        if self.shape == 0:
            return left / self.parameter / -math.log(self.parameter)
        return self.shape * left / self.parameter / -math.expm1(self.shape * math.log(self.parameter))

    def chances(self, most: int) -> np.ndarray:
        """(most,): the chances of 1, 2, … `most` runs."""
        eta, left = self.shape, 1 - self.parameter
        number = np.arange(1, most)
        first = (
            left / -math.log(self.parameter)
            if eta == 0
            else eta * left / math.expm1(-eta * math.log(self.parameter))
        )
        ratios = left * (number + eta) / (number + 1)
        return first * np.concatenate([[1.0], np.cumprod(ratios)])

    def draw(self, generator: np.random.Generator) -> int:
        """One number of runs; it stays as secret as `generator`, which is to be seeded by the system."""
        chance, most = generator.random(), 1024
        while (reached := np.cumsum(self.chances(most)))[-1] <= chance:
            if most > 1 << 26:  # 1 − Σ is rounding by now
                return most
            most *= 4
        return int(np.searchsorted(reached, chance, side="right")) + 1


def epsilon_of_best(events: Sequence[Event], delta: float, *, number: NumberOfRuns) -> float:
    """ε at `delta` of releasing the best of a random number of runs, each of which releases `events`.

    Args:
        events: of one run.
        delta: in (0, 1).
        number: how many runs there are.
    """
    epsilon_at, delta_at = profile_of(events, delta / number.mean)
    own = epsilon_at(delta / number.mean)
    if not math.isfinite(own):
        return math.inf
    return own + least_factor(delta_at, number=number, most=own)


def least_factor(delta_at: Callable[[np.ndarray], np.ndarray], *, number: NumberOfRuns, most: float) -> float:
    """c of the module's docstring, for the best ε̂ that is tried in [0, most].

    Args:
        delta_at: (n,) ε ≥ 0 → (n,) δ of one run, in both directions.
        number: of runs.
        most: ≥ 0.
    """
    tried = np.linspace(0.0, most, _TRIED)
    odds = (1 - number.parameter) / number.parameter
    factors = tried + np.log1p(np.exp(-tried) * delta_at(tried) * odds)
    return float((number.shape + 1) * factors.min())
