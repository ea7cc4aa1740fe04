"""No unit twice among the items of a train dataset: otherwise one person is several units.

Scope: index lists, nested at any depth, and the memory of tensors that lie side by side; no row is read.
What a dataset's own `__getitem__` repeats is not found.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler, StackDataset, TensorDataset


def check_distinct(loader: DataLoader[Any]) -> None:
    """Raise ValueError where the train loader would give one item of a dataset as several units.

    Args:
        loader: its dataset may be made of Subset, ConcatDataset, StackDataset and TensorDataset, or of
            classes that keep `dataset` and `indices` as Subset does.
    """
    data, sampler = loader.dataset, loader.sampler
    count = len(data)  # type: ignore[arg-type]
    if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler.num_samples != count):
        raise ValueError(
            f"the train dataloader's RandomSampler has replacement={sampler.replacement} and num_samples="
            f"{sampler.num_samples} for {count} items; private training draws each unit at most once a "
            "batch, so both would be ignored: use shuffle=True, and privacy.expected_batch_size"
        )
    places: dict[Hashable, list[np.ndarray]] = defaultdict(list)
    names: dict[Hashable, str] = {}
    for key, name, indices in _origins(data, None, count):
        places[key].append(indices)
        names[key] = name
    for key, parts in places.items():
        found = np.sort(np.concatenate(parts))
        repeated = found[1:][found[1:] == found[:-1]]
        if len(repeated):
            times = int((found == repeated[0]).sum())
            row = f"item {repeated[0]}" if isinstance(key, int) else "a row"
            raise ValueError(
                f"the train dataset {type(data).__name__} holds {row} of {names[key]} {times} times, so "
                f"what one unit can change is {times} times what is accounted for: give each item "
                "once (to weigh it, put the weight into its loss)"
            )


def _origins(
    data: object, indices: np.ndarray | None, count: int
) -> Iterator[tuple[Hashable, str, np.ndarray]]:
    """Where items come from: (what identifies the source, its name, places in it).

    Args:
        data: a dataset.
        indices: which of its items are used; None is all of them, in order.
        count: its length.
    """
    used = np.arange(count) if indices is None else np.where(indices < 0, indices + count, indices)
    inner, chosen = getattr(data, "dataset", None), getattr(data, "indices", None)
    if inner is not None and chosen is not None and hasattr(inner, "__len__"):
        yield from _origins(inner, _numbers(chosen)[used], len(inner))
    elif isinstance(data, ConcatDataset):
        bounds = [0, *data.cumulative_sizes]
        for part, (low, high) in zip(data.datasets, pairwise(bounds), strict=True):
            inside = used[(used >= low) & (used < high)] - low
            yield from _origins(part, inside, high - low)
    elif isinstance(data, StackDataset):
        parts = data.datasets
        for part in parts.values() if isinstance(parts, dict) else parts:
            yield from _origins(part, used, count)
    elif type(data) is TensorDataset and any(_lies_in_rows(one) for one in data.tensors):
        for number, column in enumerate(data.tensors):
            if _lies_in_rows(column):
                rows = column.data_ptr() + used * column.stride(0) * column.element_size()
                yield ("memory", number), f"the tensors of a {type(data).__name__}", rows
    else:
        yield id(data), type(data).__name__, used


def _lies_in_rows(column: Tensor) -> bool:
    # A column of stride 0, such as one label for all, tells nothing about its rows.
    return column.layout == torch.strided and column.numel() > 0 and column.stride(0) != 0


def _numbers(indices: Any) -> np.ndarray:
    if isinstance(indices, Tensor):
        return indices.cpu().numpy()
    if isinstance(indices, range | np.ndarray):
        return np.asarray(indices)
    return np.fromiter(map(int, indices), dtype=np.int64)
