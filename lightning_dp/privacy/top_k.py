"""The k largest of several sums, published without the sums: by the exponential mechanism, or after a test.

Every unit adds numbers from 0 to Δ to the sums, so that adding one moves none of them down and none up by
more than Δ. Both proofs rest on that, and both mechanisms see to it themselves.

Scope: add or remove one unit, all of them read. What is published is which ones, in no order.
"""

import math
import os
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.stats import norm

from lightning_dp.privacy.accounting import Event, ExponentialEvent, StabilityTestEvent
from lightning_dp.privacy.noise import NoiseSource
from lightning_dp.privacy.release import Mechanism, PerUnit
from lightning_dp.privacy.secure_noise import MARGIN, SecureGaussianNoise


@dataclass(frozen=True, kw_only=True)
class _TopK(Mechanism[np.ndarray]):
    """What both have in common; the answer is (dimension,) fp64, 1 for what is chosen and else 0.

    Attributes:
        largest: Δ > 0, the most that a unit adds to one sum. What is above counts as Δ, what is below 0 as
            0, and a unit with a NaN or an infinity as nothing.
        dimension: M ≥ 2 options, public.
        number: k from 1 to M, how many are chosen.
    """

    largest: float
    dimension: int
    number: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.largest < math.inf:
            raise ValueError(f"largest is {self.largest}; it must be a number above 0")
        if not 1 <= self.number <= self.dimension:
            raise ValueError(f"number is {self.number}; it must be from 1 to the {self.dimension} options")
        if self.sampling_rate != 1:
            raise ValueError(
                f"sampling_rate is {self.sampling_rate}; a choice without published sums has no "
                "amplification here: read every unit, or choose by noisy sums"
            )

    @property
    def sensitivity(self) -> float:
        """Of each sum by itself, upwards only for a unit that is added."""
        return self.largest

    def sums(self, values: PerUnit) -> np.ndarray:
        rows = np.asarray(values, dtype=np.float64).reshape(-1, self.dimension)
        rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
        result: np.ndarray = np.clip(rows, 0.0, self.largest).sum(axis=0)
        return result

    def answer(self, noisy: np.ndarray) -> np.ndarray:
        return noisy

    def _indicator(self, scores: torch.Tensor) -> torch.Tensor:
        chosen = torch.zeros(self.dimension, dtype=torch.float64)
        chosen[scores.argsort(descending=True, stable=True)[: self.number]] = 1.0
        return chosen


@final
@dataclass(frozen=True, kw_only=True)
class ExponentialTopK(_TopK):
    """k draws without replacement, an option of sum u with the weight exp(u / (2σΔ)).

    Made in one shot: Gumbel noise of scale 2σΔ on every sum, of which the k largest have the distribution of
    k draws one after the other (Durfee & Rogers 2019, arXiv 1905.04273, Lemma 4.2).

    Guarantee: in a draw, a unit multiplies the odds of i against j by exp((d_i − d_j) / (2σΔ)), where it
        adds d_i and d_j. As both are from 0 to Δ, the logarithm stays within ±η for η = 1 / 2σ, for any
        pair: a bounded range of η, and so η-DP. (Were units free to take away from some sums what they add
        to others, it would be
    2η: the usual factor 2.) Later draws are among fewer options, with the same bound.
    """

    @property
    def event(self) -> Event:
        return ExponentialEvent(bounded_range=1 / (2 * self.noise_multiplier), rounds=self.number)

    def perturbed(self, sums: torch.Tensor, noise: NoiseSource | None) -> torch.Tensor:
        scale = 2 * self.noise_multiplier * self.largest
        return self._indicator(sums / scale + _gumbel(len(sums)))


@final
@dataclass(frozen=True, kw_only=True)
class GapTestedTopK(_TopK):
    """Propose-test-release: the k largest as they are, where a noisy gap says that no unit could change them.

    The gap between the k-th and the next sum gets Gaussian noise of σΔ. Above the threshold Δ(1 + σΦ⁻¹(1 −
    failure)) the choice is published, else nothing is: all zeros (Dwork & Lei 2009; for choices of k, Zhu &
    Wang 2022).

    Guarantee: each sorted sum moves by 0 to Δ, in one direction, when a unit is added, so the gap g moves by
        at most Δ, and its noisy value is a Gaussian release. (a) Where g > Δ, adding or removing a unit
        changes no
    member: those inside move against those outside by at most Δ. The choice is then the same on both data
        sets, and publishing it with the outcome is post-processing of that release, in both directions. (b)
        Where g ≤ Δ, it is published with a chance of at most `failure`, whatever the neighbour does.
        `StabilityTestEvent` is the account of both.

    Attributes:
        failure: in (0, 1), a small part of δ.
    """

    failure: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.failure < 1:
            raise ValueError(f"failure is {self.failure}; it must be above 0 and below 1, a small part of δ")
        if self.number == self.dimension:
            raise ValueError(
                f"number is {self.number}, all options there are: nothing is left to be tested against"
            )

    @property
    def event(self) -> Event:
        return StabilityTestEvent(noise_multiplier=self.noise_multiplier, failure=self.failure)

    @property
    def threshold(self) -> float:
        """What the noisy gap has to exceed; twice the margin, as the noise is larger by one."""
        quantile = norm.isf(self.failure)
        result: float = self.largest * (1 + self.noise_multiplier * (1 + 2 * MARGIN) * max(quantile, 0.0))
        return result

    def perturbed(self, sums: torch.Tensor, noise: NoiseSource | None) -> torch.Tensor:
        ordered = sums.sort(descending=True).values
        gap = ordered[self.number - 1] - ordered[self.number]
        noisy = (noise or SecureGaussianNoise()).add_to(
            gap.reshape(1).clone(), scale=self.noise_multiplier * self.largest
        )
        return self._indicator(sums) if float(noisy) > self.threshold else torch.zeros_like(sums)


def _gumbel(count: int) -> torch.Tensor:
    """Independent Gumbel values (count,) fp64, 64 bits of the operating system each.

    As −log E of an exponential value: uniform numbers near 0 keep their low bits, and so does the upper tail,
    which decides, up to 45.
    """
    bits = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
    uniform = bits.double().add(0.5).abs().mul(2.0**-63).clamp(max=1 - 2.0**-53)
    return -(-(-uniform).log1p()).log()
