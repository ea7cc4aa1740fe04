"""Some units of a real batch, as a batch of their own.

What belongs to a unit is learnt from an example, the batch that collation makes of one unit alone: what is U
times as long in the batch is cut, what is equal is shared. Without an example lengths have to be enough,
and a tensor that has another length is refused, since nobody knows whose it is.

Scope: tensors, arrays, lists, tuples, mappings, dataclasses. Anything else is the same for all.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_Array = Tensor | np.ndarray


class NotCut(Exception):
    """Nobody can tell which part of the batch belongs to which unit."""


def cut(
    batch: Any, units: Sequence[int], *, num_units: int, rows_per_unit: int, example: Any | None = None
) -> Any:
    """The batch of some units, in memory of its own.

    Args:
        batch: of `num_units` units, each with `rows_per_unit` consecutive rows.
        units: positions in it, from 0, each once.
        num_units: U ≥ 1.
        rows_per_unit: ≥ 1.
        example: a batch of the same kind with one unit in it, or None where there is none to be had. Its
            values don't matter but for telling what all units share.

    Raises:
        NotCut: something in the batch has a length that fits no unit.
    """

    def rows(length: int) -> list[int]:
        step = length // num_units
        return [unit * step + row for unit in units for row in range(step)]

    def array(leaf: _Array, one: Any) -> _Array:
        if not leaf.ndim:
            return copy.copy(leaf)
        if one is not None:
            if not isinstance(one, type(leaf)) or one.ndim != leaf.ndim:
                raise NotCut
            if one.shape == leaf.shape and same_values(one, leaf):
                return copy.copy(leaf)
            if len(one) * num_units != len(leaf):
                raise NotCut
        elif len(leaf) not in (num_units, num_units * rows_per_unit):
            raise NotCut
        return leaf[rows(len(leaf))]

    def sequence(leaf: Sequence[Any], one: Any) -> Any:
        if one is not None:
            if not isinstance(one, list | tuple):
                raise NotCut
            listed = len(one) != len(leaf)
            if listed and len(one) * num_units != len(leaf):
                raise NotCut
        else:
            listed = _lists_units(leaf, num_units=num_units, rows_per_unit=rows_per_unit)
        if listed:
            return _sequence(leaf, [copy.deepcopy(leaf[row]) for row in rows(len(leaf))])
        ones = [None] * len(leaf) if one is None else one
        return _sequence(leaf, [tree(part, same) for part, same in zip(leaf, ones, strict=True)])

    def tree(part: Any, one: Any) -> Any:
        if isinstance(part, Tensor | np.ndarray):
            return array(part, one)
        if isinstance(part, list | tuple):
            return sequence(part, one)
        return _rebuilt(part, one, tree)

    return copy.deepcopy(batch) if num_units == 1 else tree(batch, example)


def same_values(left: Any, right: Any) -> bool:
    """Whether two batches have equal structure and, bit for bit up to the kind of NaN, equal values."""
    if isinstance(left, Tensor | np.ndarray):
        if not isinstance(right, type(left)):
            return False
        one, other = torch.as_tensor(left), torch.as_tensor(right)
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        equal = one == other
        return bool((equal | (one.isnan() & other.isnan()) if one.is_floating_point() else equal).all())
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping)
            and left.keys() == right.keys()
            and all(same_values(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return (
            isinstance(right, list | tuple)
            and len(left) == len(right)
            and all(same_values(one, other) for one, other in zip(left, right, strict=True))
        )
    if _is_dataclass(left):
        return type(left) is type(right) and same_values(_fields(left), _fields(right))
    return type(left) is type(right) and (not isinstance(left, int | float | str) or left == right)


def _rebuilt(part: Any, one: Any, tree: Callable[[Any, Any], Any]) -> Any:
    """A mapping or dataclass with `tree` applied to its values; anything else as it is."""
    if isinstance(part, Mapping):
        if one is not None and (not isinstance(one, Mapping) or one.keys() != part.keys()):
            raise NotCut
        changed = {key: tree(value, None if one is None else one[key]) for key, value in part.items()}
        if type(part) is dict:
            return changed
        again: Any = copy.copy(part)
        again.update(changed)
        return again
    if _is_dataclass(part):
        if one is not None and type(one) is not type(part):
            raise NotCut
        return dataclasses.replace(
            part,
            **{
                name: tree(value, None if one is None else getattr(one, name))
                for name, value in _fields(part).items()
            },
        )
    if part is not None and not isinstance(part, bool | int | float | complex | str | bytes):
        raise NotCut  # a class of the user's own, which may hold anything
    return part


def _lists_units(leaf: Sequence[Any], *, num_units: int, rows_per_unit: int) -> bool:
    """Whether a list has one entry a unit or row, rather than one a column of the batch."""
    fits = len(leaf) in (num_units, num_units * rows_per_unit)
    if _is_flat(leaf):
        return fits
    whole = any(len(t) in (num_units, num_units * rows_per_unit) for t in _arrays(leaf) if t.ndim)
    if fits and whole and not _is_column_by_column(leaf, num_units=num_units):
        raise NotCut
    return fits and not whole


def _is_column_by_column(leaf: Sequence[Any], *, num_units: int) -> bool:
    """All that is in it has as many entries as there are units, as in [x (U, …), y (U,)]."""
    return all(t.ndim and len(t) % num_units == 0 for t in _arrays(leaf))


def _arrays(tree: Any) -> Iterator[_Array]:
    if isinstance(tree, Tensor | np.ndarray):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _arrays(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _arrays(value)
    elif _is_dataclass(tree):
        yield from _arrays(_fields(tree))


def _is_flat(leaf: Sequence[Any]) -> bool:
    """Whether a list holds plain values, such as names."""
    return bool(leaf) and all(isinstance(item, bool | int | float | str | bytes) for item in leaf)


def _sequence(like: Sequence[Any], items: list[Any]) -> Any:
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*items)
    return type(like)(items)  # type: ignore[call-arg]


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _fields(tree: Any) -> dict[str, Any]:
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree) if field.init}
