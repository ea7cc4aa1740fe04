"""Images as privacy units: one image an item, or one user with λ of their images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_dp.images.batch import ImageBatch
from lightning_dp.images.data.pixels import Pixels
from lightning_dp.nets.tokenizers import Tokenizer

_ENCODED_AT_ONCE = 512


class ImageDataset(Dataset[ImageBatch]):
    """Item i is a batch of the rows of unit i.

    A `DataLoader` that is given `collate_fn=ImageDataset.collate` fetches a whole batch at once
    (`__getitems__`); a list of items works as well.

    Args:
        pixels: the images.
        rows_per_unit: λ ≥ 1 rows of a batch per unit; 1 where the unit is an image.
        by_user: whether an item is a user. λ of their images are then drawn anew at each access, without
            replacement where there are as many.
        tokenizer: makes `tokens` of the captions, for nets that learn to read; None leaves them texts.
    """

    def __init__(
        self,
        pixels: Pixels,
        *,
        rows_per_unit: int = 1,
        by_user: bool = False,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.pixels = pixels
        self._tokens: Tensor | None = None
        if tokenizer is not None and pixels.captions is not None:
            self._tokens = tokenizer(pixels.captions)  # (N, L)
        self.rows_per_unit = rows_per_unit
        self._labels = torch.from_numpy(pixels.labels)
        self._latents: Tensor | None = None
        self._of_user: list[np.ndarray] | None = None
        if by_user:
            assert pixels.users is not None
            order = np.argsort(pixels.users, kind="stable")
            _, starts = np.unique(pixels.users[order], return_index=True)
            self._of_user = np.split(order, starts[1:])

    def __len__(self) -> int:
        return len(self.pixels) if self._of_user is None else len(self._of_user)

    def __getitem__(self, index: int) -> ImageBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        """The rows of several units, one after the other."""
        rows = np.asarray(indices, dtype=np.int64)
        if self._of_user is not None:
            rows = np.concatenate([self._draw(self._of_user[index]) for index in indices])
        batch = ImageBatch(labels=self._labels[torch.from_numpy(rows)])
        if self._tokens is not None:
            batch["tokens"] = self._tokens[torch.from_numpy(rows)]
        elif self.pixels.captions is not None:
            batch["captions"] = [self.pixels.captions[row] for row in rows]
        if self._latents is not None:
            batch["latents"] = self._latents[torch.from_numpy(rows)]
        else:
            batch["images"] = to_floats(self.pixels.get(rows))
        return batch

    @staticmethod
    def collate(items: ImageBatch | list[ImageBatch]) -> ImageBatch:
        """What `__getitems__` returned as it is; single items behind one another."""
        if isinstance(items, dict):
            return items
        columns: Any = {name: [item[name] for item in items] for name in items[0]}  # type: ignore[literal-required]
        captions = [text for own in columns.pop("captions", []) for text in own]
        batch: Any = {name: torch.cat(parts) for name, parts in columns.items()}
        return {**batch, "captions": captions} if captions else batch

    def encode_with(self, encode_fn: Callable[[Tensor], Tensor]) -> None:
        """From now on hold `latents` instead of `images`, computed here, once.

        Args:
            encode_fn: (B, C, S, S) in [−1, 1] to (B, V, c, s, s), image by image.
        """
        self._latents = None  # of an earlier fit, perhaps by other weights
        parts = [
            encode_fn(to_floats(self.pixels.get(rows)))
            for rows in np.split(
                np.arange(len(self.pixels)), range(_ENCODED_AT_ONCE, len(self.pixels), _ENCODED_AT_ONCE)
            )
        ]
        self._latents = torch.cat(parts)

    def _draw(self, own: np.ndarray) -> np.ndarray:
        count = self.rows_per_unit
        if len(own) >= count:
            return own[torch.randperm(len(own))[:count].numpy()]
        return own[torch.randint(len(own), (count,)).numpy()]


def to_floats(pixels: np.ndarray) -> Tensor:
    """uint8 in [0, 255] to float32 in [−1, 1]."""
    return torch.from_numpy(pixels).float() / 127.5 - 1


def to_bytes(images: Tensor) -> np.ndarray:
    """Values in [−1, 1] to uint8 in [0, 255], rounded."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
