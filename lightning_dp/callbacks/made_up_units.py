'''Where the made-up units of preflight come from; no private value is ever read for them.

A data module (or data set) says best what its rows look like::

    def synthetic_units(self, num_units: int) -> list[Tensor]:
        """A collated batch of made-up units, from public facts only."""
        images = torch.rand(num_units, 3, 32, 32) * 2 - 1
        labels = torch.randint(self.num_classes, (num_units,))
        return [images, labels]

It has the structure of a train batch: units in order, `rows_per_unit` consecutive rows each. Values should
be possible ones and differ between units: other labels, other gaps.

Without it, a TensorDataset tells shapes and dtypes. Nothing else does: a model's `example_input_array` is
the input of `forward`, not a batch.
'''

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset


def made_up_batch(trainer: Trainer, loader: DataLoader, *, num_units: int) -> Any:
    """A collated batch of `num_units` made-up units.

    Asked in this order: the data module's and the data set's `synthetic_units`, then the shapes and dtypes of
    a TensorDataset (or a Subset of one) with the loader's collation.

    Raises:
        ValueError: nobody knows, or who was asked failed.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    for source in (datamodule, loader.dataset):
        if hasattr(source, "synthetic_units"):
            try:
                return source.synthetic_units(num_units)
            except Exception as error:
                raise ValueError(f"{type(source).__name__}.synthetic_units fails: {error!r}") from error
    columns = _columns(loader.dataset)
    if columns is None:
        raise ValueError(f"it has no synthetic_units, and a {type(loader.dataset).__name__} tells no shapes")
    made_up = [_column(column, num_units=num_units) for column in columns]
    assert loader.collate_fn is not None
    try:
        return loader.collate_fn(list(zip(*made_up, strict=True)))
    except Exception as error:
        raise ValueError(f"the loader's collate_fn fails on values from 0 to 1: {error!r}") from error


def _columns(dataset: Dataset) -> tuple[Tensor, ...] | None:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    # A subclass may return something else than its tensors' rows.
    plain = isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__
    return dataset.tensors if plain else None  # type: ignore[attr-defined]


def _column(like: Tensor, *, num_units: int) -> Tensor:
    """Uniform in [0, 1), 0 or 1 for whole numbers; of `like` only shape and dtype are used."""
    generator = torch.Generator().manual_seed(len(like.shape))
    shape = (num_units, *like.shape[1:])
    if like.is_floating_point() or like.is_complex():
        return torch.rand(shape, generator=generator).to(like.dtype)
    if len(shape) == 1:  # labels: neighbours differ
        return (torch.arange(num_units) % 2).to(like.dtype)
    return torch.randint(2, shape, generator=generator).to(like.dtype)
