"""What is inside a batch or an item: leaves that hold values, and the same tree with other leaves.

Scope: tensors, numpy arrays, numbers and lists of one entry a row, inside lists, tuples, mappings and
dataclasses.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["float", "whole", "flag"]
"""Floating-point numbers, integers, or true and false."""


def length(leaf: Any) -> int:
    """Entries of the first dimension, 0 for what has none."""
    if isinstance(leaf, Tensor | np.ndarray):
        return leaf.shape[0] if leaf.ndim else 0
    return len(leaf) if isinstance(leaf, list | tuple) else 0


def kind_of(leaf: Any) -> Kind | None:
    """What a leaf's values are; None for what has no values that could be others."""
    tensor = as_tensor(leaf)
    if tensor is None or tensor.is_complex():
        return None
    if tensor.dtype == torch.bool:
        return "flag"
    return "float" if tensor.is_floating_point() else "whole"


def as_tensor(leaf: Any) -> Tensor | None:
    """A leaf's values in memory of their own, or None where they are no numbers."""
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    if isinstance(leaf, list | tuple):
        if not leaf or not all(isinstance(one, bool | int | float) for one in leaf):
            return None
        return torch.tensor(leaf, dtype=torch.float64 if isinstance(leaf[0], float) else None)
    if isinstance(leaf, bool | int | float | np.number | np.bool_):
        return torch.tensor(leaf, dtype=torch.float64 if isinstance(leaf, float) else None)
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
        try:
            return torch.from_numpy(leaf.copy())
        except TypeError:  # a type of numpy's that torch lacks
            return None
    return None


def put_back(values: Tensor, leaf: Any) -> Any:
    """`values` in the type of `leaf`, which they were taken from."""
    if isinstance(leaf, Tensor):
        return values.to(leaf)
    if isinstance(leaf, np.ndarray):
        return values.numpy().astype(leaf.dtype)
    if isinstance(leaf, list | tuple):
        return type(leaf)(values.tolist())
    return type(leaf)(values.item())


def change(tree: Any, function: Callable[[Any], Any]) -> Any:
    """`tree` with `function` applied to its leaves; containers keep their types."""
    if isinstance(tree, Tensor | np.ndarray | np.number | np.bool_ | bool | int | float):
        return function(tree)
    if isinstance(tree, Mapping):
        changed = {key: change(value, function) for key, value in tree.items()}
        if isinstance(tree, MutableMapping) and type(tree) is not dict:
            again = copy.copy(tree)
            again.update(changed)
            return again
        return changed
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree) if field.init}
        return dataclasses.replace(tree, **{name: change(value, function) for name, value in fields.items()})
    if isinstance(tree, list | tuple):
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return type(tree)(*(change(value, function) for value in tree))
        if tree and _is_flat(tree):
            return function(tree)
        return type(tree)(change(value, function) for value in tree)
    return tree


def leaves(tree: Any) -> list[Any]:
    """Every leaf of `tree`, depth first."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    change(tree, note)
    return found


def _is_flat(tree: Any) -> bool:
    """Whether a list is itself one entry a row, such as names."""
    if any(isinstance(item, Tensor | np.ndarray | Mapping | list | tuple) for item in tree):
        return False
    if any(dataclasses.is_dataclass(item) for item in tree):
        return False
    return isinstance(tree, list) or len({type(item) for item in tree}) == 1
