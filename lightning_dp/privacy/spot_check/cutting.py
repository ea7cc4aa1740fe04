"""Some units of a real batch, as a batch of their own.

What belongs to a unit is learnt from an example, the batch that collation makes of one unit alone: what is U
times as long in the batch is cut, what is equal is shared, and anything else is refused.

Scope: tensors, arrays, lists, tuples, mappings, dataclasses. Anything else is the same for all.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_Array = Tensor | np.ndarray


class NotCut(Exception):
    """Nobody can tell which part of the batch belongs to which unit."""


def cut(batch: Any, units: Sequence[int], *, num_units: int, example: Any) -> Any:
    """The batch of some units, in memory of its own.

    Args:
        batch: of `num_units` units, each with as many consecutive rows.
        units: positions in it, from 0, each once.
        num_units: U ≥ 1.
        example: a batch of the same kind with one unit in it. Its values don't matter but for telling what
            all units share.

    Raises:
        NotCut: something in the batch has a length that fits no unit.
    """

    def rows(length: int) -> list[int]:
        step = length // num_units
        return [unit * step + row for unit in units for row in range(step)]

    def array(leaf: _Array, one: Any) -> _Array:
        if not leaf.ndim:
            return copy.copy(leaf)
        if not isinstance(one, type(leaf)) or one.ndim != leaf.ndim:
            raise NotCut
        if one.shape == leaf.shape and same_values(one, leaf):
            return copy.copy(leaf)
        if len(one) * num_units != len(leaf):
            raise NotCut
        return leaf[rows(len(leaf))]

    def sequence(leaf: Sequence[Any], one: Any) -> Any:
        if not isinstance(one, list | tuple):
            raise NotCut
        if len(one) == len(leaf):
            return _sequence(leaf, [tree(part, same) for part, same in zip(leaf, one, strict=True)])
        if len(one) * num_units != len(leaf):
            raise NotCut
        return _sequence(leaf, [copy.deepcopy(leaf[row]) for row in rows(len(leaf))])

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
        if not isinstance(one, Mapping) or one.keys() != part.keys():
            raise NotCut
        changed = {key: tree(value, one[key]) for key, value in part.items()}
        if type(part) is dict:
            return changed
        again: Any = copy.copy(part)
        again.update(changed)
        return again
    if _is_dataclass(part):
        if type(one) is not type(part):
            raise NotCut
        others = _fields(one)
        return dataclasses.replace(
            part, **{name: tree(value, others[name]) for name, value in _fields(part).items()}
        )
    if part is not None and not isinstance(part, bool | int | float | complex | str | bytes):
        raise NotCut  # a class of the user's own, which may hold anything
    return part


def _sequence(like: Sequence[Any], items: list[Any]) -> Any:
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*items)
    return type(like)(items)  # type: ignore[call-arg]


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _fields(tree: Any) -> dict[str, Any]:
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree) if field.init}
