"""Made-up images in the place of a source's own, to try a test before a fit is paid."""

from pathlib import Path
from typing import final

import numpy as np
from torch import distributed as dist

from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable, ImageTable

_IMAGES = 4


@final
class MadeUpImages(ImageSource):
    """Four noisy images (more where several processes share them) in each split, with another's public facts.

    Args:
        like: whose names, classes and captions they have.
        size: ≥ 1 pixels of a side.
        channels: 1 or 3.
        has_test: whether there is a test split.
    """

    def __init__(self, like: ImageSource, *, size: int, channels: int, has_test: bool) -> None:
        self.dataset_id = like.dataset_id
        self.class_names = like.class_names
        self.public = like.public
        self.has_captions = like.has_captions
        self._size, self._channels, self._has_test = size, channels, has_test

    def files(self) -> list[Path]:
        return []

    def open(self, split: Split) -> ImageTable | None:
        if split == "test" and not self._has_test:
            return None
        number = _IMAGES * (dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1)
        shape = (number, self._size, self._size, *((3,) if self._channels == 3 else ()))
        table = ArrayTable(
            np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
            labels=np.arange(number) % max(1, len(self.class_names)) - (not self.class_names),
            class_names=self.class_names,
            source="made-up images",
            users=[f"user {image}" for image in range(number)],
        )
        table.captions = (
            [f"made up, number {image}" for image in range(number)] if self.has_captions else None
        )
        return table
