"""What the items of a data set look like, as far as it says so without an item being read.

Of tensors and arrays only shape and dtype are used; of a list, what its first entry is made of (types,
shapes, names of fields), never a value in it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lightning_dp.protocols import MakesItems, provides


def known_items(dataset: Any, *, num_items: int) -> list[Any] | None:
    """Made-up items, floats in [0, 1) and whole numbers 0 or 1; None where the data set doesn't tell.

    Looked through: Subset (and random_split), ConcatDataset. Known: what has a method `synthetic_items`,
    TensorDataset, arrays, tensors and lists of one entry a unit.

    Raises:
        ValueError: its `synthetic_items` fails or gives another number of items.
    """
    if provides(dataset, MakesItems):
        return asked_for_items(dataset.synthetic_items, num_items, of=type(dataset).__name__)
    if isinstance(dataset, Subset) and _is_plain(dataset, Subset):
        return known_items(dataset.dataset, num_items=num_items)
    if isinstance(dataset, ConcatDataset) and _is_plain(dataset, ConcatDataset):
        parts = [known_items(part, num_items=num_items) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return [known[index % len(known)][index] for index in range(num_items)]
    like: Any = None
    if isinstance(dataset, TensorDataset) and _is_plain(dataset, TensorDataset):
        like = tuple(_Values(column.shape[1:], column.dtype) for column in dataset.tensors)
    elif isinstance(dataset, Tensor):
        like = _Values(dataset.shape[1:], dataset.dtype)
    elif type(dataset) is np.ndarray and dataset.dtype.kind in "biuf":
        like = _Array(dataset.shape[1:], dataset.dtype)
    elif type(dataset) in (list, tuple) and len(dataset):
        like = dataset[0]
    else:
        return None
    return [_MakesUp(index).like(like) for index in range(num_items)]


def asked_for_items(source: Any, num_items: int, *, of: str) -> list[Any]:
    """What `synthetic_items` gives.

    Raises:
        ValueError: it fails, or gives another number.
    """
    try:
        items = list(source(num_items))
    except Exception as error:
        raise ValueError(f"{of}.synthetic_items fails: {error!r}") from error
    if len(items) != num_items:
        raise ValueError(f"{of}.synthetic_items({num_items}) gives {len(items)} items")
    return items


def _is_plain(dataset: Dataset[Any], known: type) -> bool:
    """Whether it returns what `known` does; a subclass may return something else."""
    names = ("__getitem__", "__getitems__")
    return all(getattr(type(dataset), name, None) is getattr(known, name, None) for name in names)


class _Values:
    """A tensor's shape and dtype."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype


class _Array:
    """An array's shape and dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype


class _MakesUp:
    """One item; columns of one shape differ."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._column = -1

    def like(self, shown: Any) -> Any:
        """Made-up values in the structure of `shown`."""
        if isinstance(shown, _Array | np.ndarray):
            values = self._tensor(tuple(shown.shape), torch.from_numpy(np.empty(0, shown.dtype)).dtype)
            return values.numpy()[()]
        if isinstance(shown, _Values | Tensor):
            return self._tensor(tuple(shown.shape), shown.dtype)
        if isinstance(shown, bool | int | float | np.number | np.bool_):
            float_like = isinstance(shown, float | np.floating)
            value: Any = self._tensor((), torch.float64 if float_like else torch.int64).item()
            return type(shown)(value)
        if isinstance(shown, str):
            return f"made up, number {self._index}"
        if isinstance(shown, Mapping):
            return {key: self.like(value) for key, value in shown.items()}
        if dataclasses.is_dataclass(shown) and not isinstance(shown, type):
            fields = {f.name: self.like(getattr(shown, f.name)) for f in dataclasses.fields(shown) if f.init}
            return dataclasses.replace(shown, **fields)
        if isinstance(shown, tuple) and hasattr(shown, "_fields"):
            return type(shown)(*(self.like(value) for value in shown))
        if isinstance(shown, list | tuple):
            return type(shown)(self.like(value) for value in shown)
        if shown is None:
            return None
        raise ValueError(f"its entries hold a {type(shown).__name__}, which could be anything")

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self._column += 1
        generator = torch.Generator().manual_seed(1009 * self._column + self._index)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.rand(shape, generator=generator).to(dtype)
        if not shape:  # labels: neighbours differ
            return torch.tensor((self._index + self._column) % 2).to(dtype)
        return torch.randint(2, shape, generator=generator).to(dtype)
