"""Units whose fp32 norms or sums can't be trusted, and their contribution in fp64.

One record may hold 1e18 where all others hold 1: squares then leave fp32's range, and a norm measured too
small is a unit that is clipped too little. ε bounds the worst record, so each unit is looked at.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import PerUnitGradient
from lightning_dp.privacy.clipping.unit_sums import UnitSums

_RANGE = 1e-30, 1e30
"""Squared norms of a unit within which clip factor, products and sums stay in fp32's range."""

Uses = Mapping[str, Sequence[PerUnitGradient]]


class Untrusted:
    """Which units need `Use.exactly`, group by group of parameters.

    Args:
        uses: by parameter name.
        squares: by the same names (U,) fp64; set right here, in place, for these units.
        sums: the partition into groups.
    """

    def __init__(self, uses: Uses, squares: Mapping[str, Tensor], *, sums: UnitSums) -> None:
        self._groups = sums.groups
        self._units = _untrusted(uses, squares, sums)  # (U, G) bool
        self.any = bool(self._units.any())
        if self.any:
            for name, parts in uses.items():
                units = self._of(name)
                if len(units):
                    squares[name][units] = torch.stack([use.exact_squares(units) for use in parts]).sum(dim=0)

    def _of(self, name: str) -> Tensor:
        return torch.nonzero(self._units[:, self._groups[name]]).flatten()

    def left_out(self, name: str, spoilt: Tensor) -> Tensor:
        """(U,) bool: units that the fast sum must leave out, `spoilt` (U,) bool ones among them."""
        return spoilt | self._units[:, self._groups[name]]

    def sum(self, name: str, parts: Sequence[PerUnitGradient], coefficients: Tensor) -> Tensor | None:
        """Σ coefficient · gradient over these units, before they are left out; None where there are none."""
        units = self._of(name)
        units = units[coefficients[units] != 0]
        if not len(units):
            return None
        return torch.stack([use.exact_sum(units, coefficients[units]) for use in parts]).sum(dim=0)


def _untrusted(uses: Uses, squares: Mapping[str, Tensor], sums: UnitSums) -> Tensor:
    first = next(iter(squares.values()), None)
    device = None if first is None else first.device
    total = torch.zeros(sums.units, sums.num_groups, dtype=torch.float64, device=device)
    floor = torch.zeros_like(total)
    for name, parts in uses.items():
        group = sums.groups[name]
        total[:, group] += squares[name].to(total.device)
        for use in parts:
            own = use.floor()
            if own is not None:
                floor[:, group] += own.to(floor.device)
    low, high = _RANGE
    within = (total >= low) & (total <= high) | (total == 0)
    return ~(within & (total >= floor))  # NaN is not within
