"""A batch of made-up units that can be cut, put together anew, broken and thinned out.

Scope: tensors and numpy arrays in lists, tuples, mappings and dataclasses. What has one entry a row, or a
unit, is cut; anything else is the same for all.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

_LARGEST_GAP = 0.5


@final
class MadeUpUnits:
    """A collated batch of `num_units` units with `rows_per_unit` consecutive rows each.

    Raises:
        ValueError: nothing in the batch has that many rows.
    """

    def __init__(self, batch: Any, *, num_units: int, rows_per_unit: int) -> None:
        self.num_units = num_units
        self.rows_per_unit = rows_per_unit
        self._batch = batch
        found: list[int] = []

        def note(leaf: Any) -> Any:
            found.append(_length(leaf))
            return leaf

        _change(batch, note)
        if num_units * rows_per_unit not in found:
            raise ValueError(
                f"a batch of {num_units} units with {rows_per_unit} row(s) each holds nothing with "
                f"{num_units * rows_per_unit} rows first"
            )

    def pick(self, units: Sequence[int]) -> Any:
        """The batch of some units, in memory of its own."""
        return _change(self._batch, lambda leaf: self._rows(leaf, units))

    @property
    def num_floats(self) -> int:
        """Tensors and arrays of floating-point numbers that have rows."""
        found = 0

        def note(leaf: Any) -> Any:
            nonlocal found
            found += self._is_cut(leaf) and _is_float(leaf)
            return leaf

        _change(self._batch, note)
        return found

    def with_gaps(self, only: int | None = None) -> Self:
        """The same units with missing values (NaN), another share of them in each unit.

        Args:
            only: in this one of the `num_floats` tensors; None in all of them.
        """
        generator = np.random.default_rng(0)
        met = -1

        def thin(leaf: Any) -> Any:
            nonlocal met
            if not self._is_cut(leaf) or not _is_float(leaf):
                return leaf
            met += 1
            if only not in (None, met):
                return leaf
            draws = generator.random(tuple(leaf.shape))
            share = _LARGEST_GAP * np.arange(1, len(leaf) + 1) / len(leaf)
            gaps = draws < share.reshape(-1, *(1,) * (draws.ndim - 1))
            if isinstance(leaf, np.ndarray):
                return np.where(gaps, np.nan, leaf)
            return leaf.masked_fill(torch.from_numpy(gaps).to(leaf.device), torch.nan)

        return type(self)(
            _change(self._batch, thin), num_units=self.num_units, rows_per_unit=self.rows_per_unit
        )

    def broken(self, unit: int, *, value: float) -> Self | None:
        """The same units, one of them full of `value`; None where they hold no floating-point numbers."""
        if not self.num_floats:
            return None
        start = unit * self.rows_per_unit

        def spoil(leaf: Any) -> Any:
            if not self._is_cut(leaf) or not _is_float(leaf):
                return leaf
            spoilt = leaf.copy() if isinstance(leaf, np.ndarray) else leaf.clone()
            if len(leaf) == self.num_units:
                spoilt[unit] = value
            else:
                spoilt[start : start + self.rows_per_unit] = value
            return spoilt

        return type(self)(
            _change(self._batch, spoil), num_units=self.num_units, rows_per_unit=self.rows_per_unit
        )

    def _is_cut(self, leaf: Any) -> bool:
        return _length(leaf) in (self.num_units, self.num_units * self.rows_per_unit)

    def _rows(self, leaf: Any, units: Sequence[int]) -> Any:
        if not self._is_cut(leaf):
            return copy.copy(leaf)
        step = _length(leaf) // self.num_units
        rows = [unit * step + row for unit in units for row in range(step)]
        return leaf[rows] if isinstance(leaf, Tensor | np.ndarray) else type(leaf)(leaf[row] for row in rows)


def _length(leaf: Any) -> int:
    """Entries of the first dimension, 0 for what has none."""
    if isinstance(leaf, Tensor | np.ndarray):
        return leaf.shape[0] if leaf.ndim else 0
    return len(leaf) if isinstance(leaf, list | tuple) else 0


def _is_float(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.is_floating_point()
    return isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.floating)


def _is_flat(tree: Any) -> bool:
    """Whether a list is itself one entry a row, such as names."""
    return not any(isinstance(item, Tensor | np.ndarray | Mapping | list | tuple) for item in tree)


def _change(tree: Any, function: Callable[[Any], Any]) -> Any:
    """`tree` with `function` applied to its leaves; containers keep their types."""
    if isinstance(tree, Tensor | np.ndarray):
        return function(tree)
    if isinstance(tree, Mapping):
        changed = {key: _change(value, function) for key, value in tree.items()}
        if isinstance(tree, MutableMapping) and type(tree) is not dict:
            again = copy.copy(tree)
            again.update(changed)
            return again
        return changed
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree) if field.init}
        return dataclasses.replace(tree, **{name: _change(value, function) for name, value in fields.items()})
    if isinstance(tree, list | tuple):
        if tree and _is_flat(tree):
            return function(tree)
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return type(tree)(*(_change(value, function) for value in tree))
        return type(tree)(_change(value, function) for value in tree)
    return tree
