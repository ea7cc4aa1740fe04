"""Made-up units that can be put together anew, and given other values.

Either the items are known, and each batch of them goes through the loader's own collation
(`MadeUpItems`), or a collated batch is, and it is cut (`MadeUpUnits`).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from lightning_dp.privacy.batch_layout import BatchLayout
from lightning_dp.privacy.batch_trees import Kind, as_tensor, change, kind_of, leaves, length, put_back
from lightning_dp.privacy.preflight.values import Change, broken, gaps

_TRIED = (2, 5)


class MadeUp(ABC):
    """Units that belong to nobody.

    Attributes:
        num_units: how many.
        rows_per_unit: ≥ 1, consecutive rows of each in a collated batch.
        kinds: what the values of each leaf are, in the order of the leaves.
        sizes: how many values a unit has in each of them.
    """

    num_units: int
    rows_per_unit: int
    kinds: list[Kind]
    sizes: list[int]

    @abstractmethod
    def pick(self, units: Sequence[int]) -> Any:
        """The batch of some units, in memory of its own; `Uncollated` where it has to be collated first."""

    @abstractmethod
    def changed(self, change: Change) -> Self:
        """The same units with other values."""

    @property
    def num_floats(self) -> int:
        """Leaves of floating-point numbers."""
        return self.kinds.count("float")

    def leaves_of(self, kind: Kind) -> list[int]:
        """The leaves of a kind, the first eight."""
        return [leaf for leaf, own in enumerate(self.kinds) if own == kind][:8]

    def with_gaps(self, only: int | None = None) -> Self:
        """The same units with missing values (NaN), another share of them in each unit.

        Args:
            only: in this one of the `num_floats` leaves; None in all of them.
        """
        floats = [leaf for leaf, kind in enumerate(self.kinds) if kind == "float"]
        return self.changed(gaps(floats if only is None else [floats[only]], torch.nan))

    def broken(self, unit: int, *, value: float) -> Self | None:
        """The same units, one of them full of `value`; None where they hold no floating-point numbers."""
        return self.changed(broken(unit, value)) if self.num_floats else None


@final
class MadeUpUnits(MadeUp):
    """A collated batch of `num_units` units with `rows_per_unit` consecutive rows each.

    Args:
        batch: of that many units.
        layout: what in it belongs to units; all else is the same for all.
        num_units: ≥ 1.
        rows_per_unit: ≥ 1.

    Raises:
        ValueError: nothing in the batch has that many rows.
    """

    def __init__(self, batch: Any, *, layout: BatchLayout, num_units: int, rows_per_unit: int) -> None:
        self.num_units = num_units
        self.rows_per_unit = rows_per_unit
        self._batch, self._layout = batch, layout
        found: list[Any] = []
        layout.changed(batch, lambda leaf, each: found.append(leaf) if each else None, num_units=num_units)
        _check_rows(found, num_units=num_units, rows_per_unit=rows_per_unit)
        self.kinds, self.sizes = _described(found)
        self.sizes = [size // num_units for size in self.sizes]

    @classmethod
    def of(cls, source: Callable[[int], Any], *, num_units: int, rows_per_unit: int) -> Self:
        """From a number of units to a batch of them; what grows with that number belongs to units.

        Raises:
            ValueError: nobody can tell which part of a batch belongs to which unit.
        """
        batch = source(num_units)
        _check_rows(leaves(batch), num_units=num_units, rows_per_unit=rows_per_unit)
        layout = BatchLayout.of({num_units: batch, num_units - 2: source(num_units - 2)})
        return cls(batch, layout=layout, num_units=num_units, rows_per_unit=rows_per_unit)

    def pick(self, units: Sequence[int]) -> Any:
        return self._layout.pick(self._batch, units, num_units=self.num_units)

    def item(self, unit: int) -> Any:
        """What collation would make a unit's part of the batch of, where it stacks entries or joins rows."""

        def own(leaf: Any, each: int) -> Any:
            if not each:
                return leaf
            return leaf[unit] if each == 1 else leaf[unit * each : (unit + 1) * each]

        return self._layout.changed(self._batch, own, num_units=self.num_units)

    def changed(self, change_values: Change) -> Self:
        met = -1

        def give(leaf: Any, each: int) -> Any:
            nonlocal met
            kind = kind_of(leaf) if each else None
            if kind is None:
                return leaf
            met += 1
            values = as_tensor(leaf)
            assert values is not None
            for unit in range(self.num_units):
                own = slice(unit * each, (unit + 1) * each)
                values[own] = change_values(values[own], kind, unit, met)
            return put_back(values, leaf)

        return type(self)(
            self._layout.changed(self._batch, give, num_units=self.num_units),
            layout=self._layout,
            num_units=self.num_units,
            rows_per_unit=self.rows_per_unit,
        )


@final
@dataclass(frozen=True, kw_only=True)
class Uncollated:
    """Items that become a batch when a step takes it, under the step's random numbers."""

    items: list[Any]
    collate: Callable[[list[Any]], Any]

    def collated(self) -> Any:
        """The batch, of items in memory of their own."""
        return self.collate(copy.deepcopy(self.items))


@final
class MadeUpItems(MadeUp):
    """Items as the data set returns them, one a unit, and the loader's own collation.

    Args:
        items: one a unit, of one structure.
        collate: from a list of items to a batch.
        rows_per_unit: ≥ 1, consecutive rows of each in a batch.
    """

    def __init__(
        self, items: Sequence[Any], *, collate: Callable[[list[Any]], Any], rows_per_unit: int
    ) -> None:
        self.num_units = len(items)
        self.rows_per_unit = rows_per_unit
        self._items = list(items)
        self._collate = collate
        self.kinds, self.sizes = _described(leaves(self._items[0]))

    def pick(self, units: Sequence[int]) -> Uncollated:
        return Uncollated(items=[self._items[unit] for unit in units], collate=self._collate)

    def changed(self, change_values: Change) -> Self:
        def give(unit: int) -> Callable[[Any], Any]:
            met = -1

            def one(leaf: Any) -> Any:
                nonlocal met
                kind = kind_of(leaf)
                if kind is None:
                    return leaf
                met += 1
                values = as_tensor(leaf)
                assert values is not None
                return put_back(change_values(values, kind, unit, met), leaf)

            return one

        items = [change(item, give(unit)) for unit, item in enumerate(self._items)]
        return type(self)(items, collate=self._collate, rows_per_unit=self.rows_per_unit)


def _check_rows(found: Sequence[Any], *, num_units: int, rows_per_unit: int) -> None:
    if num_units * rows_per_unit not in map(length, found):
        raise ValueError(
            f"a batch of {num_units} units with {rows_per_unit} row(s) each holds nothing with "
            f"{num_units * rows_per_unit} rows first"
        )


def collating(units: MadeUpUnits, items: Sequence[Any], collate: Callable[[list[Any]], Any]) -> bool:
    """Whether a collation makes of items what the batch of as many units looks like: parts, types, shapes."""
    for number in _TRIED:
        try:
            found = collate(copy.deepcopy(list(items[:number])))
        except Exception:
            return False
        if _looks(found) != _looks(units.pick(range(number))):
            return False
    return True


def _looks(batch: Any) -> list[Any]:
    tensors = [as_tensor(leaf) for leaf in leaves(batch)]
    return [None if one is None else (one.dtype, one.shape) for one in tensors]


def row_of_first(batch: Any, *, num_units: int) -> list[Tensor]:
    """What a collated batch holds of its first unit: the first of `num_units` equal parts of each leaf."""
    tensors = [leaf for leaf in map(as_tensor, leaves(batch)) if leaf is not None and leaf.ndim]
    return [leaf[: len(leaf) // num_units] for leaf in tensors if len(leaf) and len(leaf) % num_units == 0]


def _described(found: Sequence[Any]) -> tuple[list[Kind], list[int]]:
    kinds: list[Kind] = []
    sizes = []
    for leaf in found:
        kind, values = kind_of(leaf), as_tensor(leaf)
        if kind is not None and values is not None:
            kinds.append(kind)
            sizes.append(values.numel())
    return kinds, sizes
