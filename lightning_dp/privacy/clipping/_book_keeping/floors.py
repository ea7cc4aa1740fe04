"""Below which squared norm of a unit fp32 can't be trusted, for each way to form it."""

import torch
from torch import Tensor

TINY = 2.0**-126
"""Below it fp32 loses digits, or all of them where a device flushes to zero."""
_ORDINARY = 1e15
"""Activations and gradients up to this length meet no overflow in fp32, whatever the clip factor."""
_PRECISION = 1e-6
"""Share of a squared norm that underflow may take without being noticed."""
_GRAM_SPREAD = 1e3
"""Squared norms by Gram matrices are right as long as they are at least this part of their `spread`."""
_SUM_SPREAD = 5e3, 1e7
"""The same for sums that are formed twice, for the norm and clipped: per entry of the weight, and at most.

Rounding of both is 2⁻²⁴ of the root of the spread, and in no direction in particular: of numel entries one
is along the gradient, and what is across it lengthens by its square.
"""


def beyond(*squares: Tensor) -> Tensor:
    """(U,) fp64, Inf where one of the squared lengths is beyond what fp32 products stand, else 0."""
    largest = torch.stack(squares).amax(dim=0)
    return torch.where(largest <= _ORDINARY**2, 0.0, torch.inf)


def floor_of_sums(left: Tensor, right: Tensor, *, numel: int) -> Tensor:
    """The floor of a sum of products of squared lengths ≤ `left` and `right` that is formed in fp32."""
    per_entry, most = _SUM_SPREAD
    cancelled = left * right / min(per_entry * numel, most)
    return beyond(left, right) + cancelled + TINY * numel / _PRECISION


def floor_of_grams(
    left: Tensor, right: Tensor, *, plain: Tensor, tokens: int, widths: tuple[int, int]
) -> Tensor:
    """`PerUnitGradient.floor` where two T × T Gram matrices are formed in fp32 and multiplied.

    Args:
        left, right: (U,) fp32, their traces Σ_t ‖a_t‖², Σ_t ‖g_t‖².
        plain: (U,) fp32, Σ_t ‖a_t‖ ‖g_t‖.
        tokens: T.
        widths: entries of a_t and g_t.
    """
    sides = [side.double() + TINY * tokens * width for side, width in zip((left, right), widths, strict=True)]
    # Each of T² products misses what either Gram entry lost, and may be lost itself.
    lost = 2 * TINY * tokens * (widths[0] * sides[1] + widths[1] * sides[0] + tokens)
    return beyond(*sides) + lost / _PRECISION + plain.double().square() / _GRAM_SPREAD


def floor_of_kept(numel: int) -> float:
    """`PerUnitGradient.floor` where norm and sum are of the same fp32 numbers, whose squares may be lost."""
    return TINY * numel / _PRECISION
