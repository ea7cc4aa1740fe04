"""Gaussian noise for an adversary who knows how computers make it.

`GaussianNoise` leaves two doors open in theory. Its generator has a state of 256 bits, which somebody
who sees enough noise might try to recover. And a floating-point sum of data and noise has low bits
that depend on the data, whatever the noise (Mironov 2012, "On significance of the least significant
bits for differential privacy"; for Gaussians Jin et al. 2021, arXiv 2112.05307). Here every value comes
from bytes of its own of the operating system's cryptographic generator, so there is no state, and data
and noise meet as whole numbers of a public grid.

Out of scope: the floating-point arithmetic before the noise (clipping factors, the sum itself); what a
computer's memory, caches or timing tell; an operating system whose generator is broken.
"""

import math
import os
from typing import final

import torch
from torch import Tensor

GRID = 2.0**-26
"""Floor of the grid: values of `standard_normal` are whole multiples of it, and so is everything that
`add_to` returns, in units of its noise's standard deviation. About 1.5e-8."""

MARGIN = 2.0**-12
"""Share by which `add_to` enlarges the noise to pay for rounding the data to the grid."""

LARGEST = 2.0**14
"""Most of σ·√d, noise multiplier times root of the number of values, that MARGIN pays for."""


def check_margin(*, noise_multiplier: float, num_values: int) -> None:
    """Raise ValueError where rounding to the grid would cost more than the enlarged noise pays for.

    Args:
        noise_multiplier: σ > 0.
        num_values: d ≥ 0, values that are released together.
    """
    product = noise_multiplier * math.sqrt(num_values)
    if product > LARGEST:
        raise ValueError(
            f"noise on a grid with noise_multiplier={noise_multiplier:.4g} for {num_values:,} values at once "
            f"rounds more than it pays for: σ·√d is {product:.4g} and may be {LARGEST:.0f}; release or train "
            f"at most {int((LARGEST / noise_multiplier) ** 2):,} values, or in training set "
            "privacy.secure=False"
        )


@final
class SecureGaussianNoise:
    """Gaussian noise from `os.urandom`, 64 bits a value, by Box and Muller's transform in fp64.

    Guarantee of `add_to`: the result is a function of r + n, where r is the data rounded to the grid
    and n a Gaussian rounded to the grid; rounding n after adding it to r gives the same number, so it
    costs nothing, and no bit below the grid is released. Rounding d values of the data moves the ℓ2
    sensitivity by at most √d cells, that is by a share of σ·√d·GRID, which MARGIN covers for
    σ·√d ≤ 2¹⁴ (`check_margin`): 268 million parameters at a noise multiplier of 1.

    What an ideal Gaussian has and this one lacks: values beyond 9.42 standard deviations (chance 5e-21
    each), and cells whose weights are exact to better than about 1 part in 10⁷.

    The noise is made on the CPU, whatever the device: about three times the time of `GaussianNoise`.
    """

    def __getstate__(self) -> dict[str, object]:
        raise TypeError("a noise source is never saved or copied: make a new SecureGaussianNoise()")

    def standard_normal(self, shape: torch.Size, *, device: torch.device) -> Tensor:
        """Independent N(0, 1) values rounded to multiples of GRID, fp64 (fp32 could not hold the grid).

        Adding them to values that are not on the grid releases what lies below it: use `add_to`.
        """
        count = math.prod(shape)
        pairs = (count + 1) // 2
        if not pairs:
            return torch.zeros(shape, dtype=torch.float64, device=device)
        bits = torch.frombuffer(bytearray(os.urandom(16 * pairs)), dtype=torch.int64).view(2, pairs)
        # |k + ½| / 2⁶³ is uniform in (0, 1]; signed whole numbers keep their low bits near 0, which is
        # where the logarithm needs them: the tail reaches √(2 ln 2⁶⁴) = 9.42.
        radius = bits[0].double().add_(0.5).abs_().mul_(2.0**-63).log_().mul_(-2).sqrt_()
        angle = bits[1].double().mul_(math.pi * 2.0**-63)
        values = torch.cat((radius * angle.cos(), radius * angle.sin()))[:count]
        return values.mul_(1 / GRID).round_().mul_(GRID).view(shape).to(device)

    def add_to(self, sums: Tensor, *, scale: float) -> Tensor:
        """Add noise of standard deviation `scale` · (1 + MARGIN) to `sums`, in place, on the grid.

        Args:
            sums: finite; anything beyond ±2²⁰ · scale is cut off there.
            scale: > 0, a public number: noise multiplier times sensitivity.
        """
        if not sums.is_floating_point():
            raise TypeError(f"sums is {sums.dtype}, which would round the noise: make it floating-point")
        spacing = scale * (1 + MARGIN)
        noise = self.standard_normal(sums.shape, device=torch.device("cpu"))
        # All in fp64, where whole multiples of GRID up to 2²⁶ are exact: so is data + noise.
        data = sums.detach().to("cpu", torch.float64).div(spacing).clamp_(-(2.0**20), 2.0**20)
        data.mul_(1 / GRID).round_().mul_(GRID)
        return sums.copy_(data.add_(noise).mul_(spacing))
