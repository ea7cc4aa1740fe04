"""Whether two data sets hold a row in common, as far as that can be told without reading one."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset, TensorDataset

Part = tuple[frozenset[int], frozenset[int] | None]
"""What the rows are of, by identity; and which of its rows, None for all."""


def share_rows(one: Any, other: Any) -> bool:
    """Whether a row of `one` is a row of the same object in `other`.

    `Subset`, `ConcatDataset` and the tensors of a `TensorDataset` are looked into; a copy can't be told.
    """
    theirs = list(_parts(other))
    return any(
        own & same and (rows is None or which is None or rows & which)
        for own, rows in _parts(one)
        for same, which in theirs
    )


def _parts(dataset: Any, rows: Sequence[int] | None = None) -> Iterable[Part]:
    if isinstance(dataset, Subset):
        chosen = dataset.indices
        yield from _parts(dataset.dataset, chosen if rows is None else [chosen[row] for row in rows])
    elif isinstance(dataset, ConcatDataset):
        begin = 0
        for part, end in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            inside = None if rows is None else [row - begin for row in rows if begin <= row < end]
            yield from _parts(part, inside)
            begin = end
    else:
        of = {id(dataset), *map(id, dataset.tensors if isinstance(dataset, TensorDataset) else ())}
        yield frozenset(of), None if rows is None else frozenset(int(row) for row in rows)
