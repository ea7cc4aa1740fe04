"""Tensors inside the arguments and outputs of a call: lists, tuples, mappings and nothing else."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of `tree`, depth first."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to each tensor; mappings come back as dicts."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def separate(tree: Any) -> Any:
    """`tree` with each tensor that requires grad behind a view of its own.

    A call may return a tensor beside another computed from it; only behind the views does each get the
    gradient from outside alone. Mappings are changed in place, so that their type survives.
    """
    if sum(tensor.requires_grad for tensor in tensors(tree)) < 2:
        return tree  # a view would lose its hook to an in-place operator
    return _behind_views(tree)


def _behind_views(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.view_as(tree) if tree.requires_grad else tree
    if isinstance(tree, MutableMapping):
        for key, value in tree.items():
            tree[key] = _behind_views(value)
        return tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_behind_views(value) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_behind_views(value) for value in tree)
    return tree


class Autocast:
    """The autocast state of this moment, to be entered again later."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._enabled = torch.is_autocast_enabled(device_type)
        self._dtype = torch.get_autocast_dtype(device_type)

    def again(self) -> AbstractContextManager[Any]:
        """A fresh context with the noted state."""
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._enabled)
