"""Other values for made-up units: what real units hold now and then, and made-up ones would never.

A `Change` gives a unit's part of a leaf other values. Each depends on the unit, so that what a batch counts
is not alike in all of its units.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from lightning_dp.privacy.batch_trees import Kind

Change = Callable[[Tensor, Kind, int, int], Tensor]
"""(values, what they are, unit, number of the leaf) → values of the same shape."""

SHARES = (0.15, 0.85, 0.3, 0.5, 0.65)
"""Of a unit's entries, by unit: far apart, so that counts differ where there are a handful of entries."""

SENTINELS = (-100, -1)
"""What stands for "no label" in whole numbers: torch's ignore_index, and the rest of the world's."""


def _generator(unit: int, leaf: int, salt: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * salt + 1009 * leaf + unit)


def _some(values: Tensor, unit: int, leaf: int) -> Tensor:
    """Which entries of a unit: a share of its own, never all of several; of single ones each third unit's."""
    count = values.numel()
    if count <= 1:
        return torch.full(values.shape, unit % 3 == 1)
    chosen = max(1, min(count - 1, round(SHARES[unit % len(SHARES)] * count)))
    order = torch.randperm(count, generator=_generator(unit, leaf, 1))
    return (order < chosen).view(values.shape)


def gaps(only: Collection[int], value: float) -> Change:
    """`value` in some entries of the leaves `only`, another share in each unit."""

    def change(values: Tensor, kind: Kind, unit: int, leaf: int) -> Tensor:
        if leaf not in only:
            return values
        if kind == "flag":
            return _some(values, unit, leaf)
        return values.masked_fill(_some(values, unit, leaf).to(values.device), value)

    return change


def broken(broken_unit: int, value: float) -> Change:
    """One unit's floating-point numbers are all `value`."""

    def change(values: Tensor, kind: Kind, unit: int, leaf: int) -> Tensor:
        return torch.full_like(values, value) if unit == broken_unit and kind == "float" else values

    return change


def signs_and_gaps(values: Tensor, kind: Kind, unit: int, leaf: int) -> Tensor:
    """Both signs; by unit, some entries are 0, −1 or −100, or all are next to nothing."""
    if kind != "float":
        return values
    generator = _generator(unit, leaf, 2)
    factors = 0.5 + torch.rand(values.shape, generator=generator)
    flips = torch.where(torch.rand(values.shape, generator=generator) < 0.5, -1.0, 1.0)
    other = values * (factors * flips).to(values)
    if unit % 5 == 4:
        return other * 1e-30
    gap = (0.0, 0.0, -1.0, -100.0)[unit % 5]
    return other.masked_fill(_some(values, unit, leaf).to(values.device), gap)


def positive(values: Tensor, kind: Kind, unit: int, leaf: int) -> Tensor:
    """Above 0 and below what is usual, for steps that take a logarithm."""
    if kind != "float":
        return values
    return (0.05 + 0.9 * torch.rand(values.shape, generator=_generator(unit, leaf, 3))).to(values)


def large(values: Tensor, kind: Kind, unit: int, leaf: int) -> Tensor:
    """Thousands, of both signs."""
    if kind != "float":
        return values
    drawn = torch.randn(values.shape, generator=_generator(unit, leaf, 4))
    return (3e3 * (drawn + drawn.sign())).to(values)


def whole(only: int, numbers: Sequence[int]) -> Change:
    """The leaf `only` gets whole numbers out of `numbers`: single entries in turn, others at random."""

    def change(values: Tensor, kind: Kind, unit: int, leaf: int) -> Tensor:
        if leaf != only:
            return values
        if values.numel() <= 1:
            return torch.full_like(values, numbers[unit % len(numbers)])
        own = torch.randint(len(numbers), values.shape, generator=_generator(unit, leaf, 5))
        return torch.tensor(numbers, device=values.device)[own.to(values.device)].to(values)

    return change


def all_of(only: int, number: int) -> Change:
    """The leaf `only` is `number` throughout."""

    def change(values: Tensor, kind: Kind, unit: int, leaf: int) -> Tensor:
        return torch.full_like(values, number) if leaf == only else values

    return change
