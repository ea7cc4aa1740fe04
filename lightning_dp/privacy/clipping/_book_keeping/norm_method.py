"""Which way to a layer's norms is the cheapest: counted operations, not one rule for all.

The layer: gradient of a (p, d) weight for each of U units, Σ_t g_t ⊗ a_t over T tokens. One full
product costs F = 2·U·T·p·d operations. Every way ends with the clipped sum:

=======  ====================================  =====================================
way      operations                            bytes moved
=======  ====================================  =====================================
outer    (T = 1) none: ‖a‖²·‖g‖²; F            the narrower of A, G
ghost    ⅝·F·T·(1/p + 1/d) + F (symmetric)     Gram matrices; the narrower of A, G
direct   F + F                                 one chunk in cache; the narrower of A, G
keep     F: the sum comes from the kept ones   U·p·d written, read twice
=======  ====================================  =====================================

Ghost: Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679. Choosing per layer: Bu et
al. 2023, arXiv 2210.00038, there by the fixed rule 2T² < p·d.
"""

from dataclasses import dataclass
from typing import Literal

import torch

NormMethod = Literal["outer", "ghost", "direct", "keep"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a device makes cheap or dear."""

    flops_per_byte: float
    """Operations of a large matrix product in the time one byte goes to or from memory."""
    small_product: float
    """How much dearer an operation is in a batch of small products than in a large one."""
    keep_bytes_ratio: float
    """Kept per-unit gradients may take this many times the bytes of the A and G they replace."""
    kernel_entry: float
    """Operations in the time that one entry of a convolution's per-unit gradient takes beside its sums."""
    shifted_entry: float
    """The same for an entry of a Gram matrix that is moved and added."""


def machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Counted for a CPU core and its share of memory bandwidth, and for data-centre GPUs."""
    if device.type == "cpu":
        return Machine(
            flops_per_byte=4.0, small_product=1.1, keep_bytes_ratio=1.25, kernel_entry=160, shifted_entry=80
        )
    half = dtype in (torch.bfloat16, torch.float16)
    moved = 160.0 if half else 14.0
    return Machine(
        flops_per_byte=moved,
        small_product=1.5,
        keep_bytes_ratio=0.5,
        kernel_entry=8 * moved,
        shifted_entry=8 * moved,
    )


def cheapest(
    *, units: int, tokens: int, outputs: int, inputs: int, itemsize: int, machine: Machine
) -> NormMethod:
    """The cheapest way for one layer.

    Args:
        units, tokens, outputs, inputs: U, T, p, d.
        itemsize: bytes per element of A and G.
        machine: the device's costs.
    """
    if tokens == 1:
        return "outer"
    full = 2.0 * units * tokens * outputs * inputs
    gradients = 4.0 * units * outputs * inputs
    narrow = 8.0 * units * tokens * min(outputs, inputs)
    grams = 16.0 * units * tokens * tokens
    moved = machine.flops_per_byte
    symmetric = 0.625 if tokens >= 64 else 1.0
    costs: dict[NormMethod, float] = {
        "ghost": full * tokens * (1 / outputs + 1 / inputs) * machine.small_product * symmetric
        + full
        + (grams + narrow) * moved,
        # Chunks stay in cache: a quarter of what memory would cost.
        "direct": full * machine.small_product + full + (gradients * 0.5 + narrow) * moved,
    }
    replaced = float(itemsize * units * tokens * (outputs + inputs))
    if gradients <= machine.keep_bytes_ratio * replaced:
        costs["keep"] = full * machine.small_product + 3 * gradients * moved
    return min(costs, key=lambda method: costs[method])


def cheapest_of_convolution(
    *,
    tokens: int,
    pixels: int,
    outputs: int,
    inputs: int,
    kernel: tuple[int, int],
    groups: int,
    bytes_replaced: int,
    machine: Machine,
) -> NormMethod:
    """The cheapest way for one convolution; all counts are of one unit.

    Args:
        tokens: positions of the output.
        pixels: positions of the padded input.
        outputs, inputs: channels.
        kernel: its height and width.
        groups: of channels.
        bytes_replaced: of the unit's input and output gradient.
        machine: the device's costs.
    """
    entries = outputs * inputs // groups * kernel[0] * kernel[1]
    full = 2.0 * tokens * entries
    gradient = full + entries * machine.kernel_entry
    grams = 2.0 * (pixels**2 * inputs + tokens**2 * outputs)
    shifts = groups * tokens**2 * (sum(kernel) + 1) * machine.shifted_entry
    if 4 * entries <= machine.keep_bytes_ratio * bytes_replaced and gradient <= grams + shifts + full:
        return "keep"
    return "ghost" if grams + shifts < gradient else "direct"
