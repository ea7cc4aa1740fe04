"""A list of images with their labels, wherever they lie: what a source opens and a data module checks.

Scope: access by number. Sizes and modes are checked in `pixels.py`, labels in `image_data.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from lightning_dp.images.data.decoding import UnreadableImage, decode

Check = Callable[[Image.Image], None]


class ImageTable(ABC):
    """N images in a fixed order.

    Args:
        labels: (N,) int64, −1 where unknown.
        class_names: what 0, 1, … mean; a public fact, not counted from the labels.
        users: N names of whom each image is about or from, or None where that is unknown.
        captions: N texts, each as private as its image, or None where there are none.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        class_names: Sequence[str],
        users: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.users = None if users is None else np.asarray(users, dtype=str)
        self.captions = None if captions is None else list(captions)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Where image `index` is, for an error message."""

    @abstractmethod
    def read(self, index: int, *, check: Check | None = None) -> Image.Image:
        """Image `index`, decoded once `check` has let its header pass.

        Raises:
            UnreadableImage: it can't be.
        """

    def array(self) -> np.ndarray | None:
        """All images at once, (N, H, W) or (N, H, W, 3) uint8, where they lie in memory anyway."""
        return None


class ArrayTable(ImageTable):
    """Images that are already an array.

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8.
        labels, class_names, users: as in `ImageTable`.
        source: the file they came from.
    """

    def __init__(
        self,
        images: np.ndarray,
        *,
        labels: np.ndarray,
        class_names: Sequence[str],
        source: str,
        users: Sequence[str] | None = None,
    ) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{source} holds labels of shape {labels.shape} and type {labels.dtype}; they have to be "
                "whole numbers of shape (N,), counted from 0, or −1 where unknown."
            )
        super().__init__(labels, class_names=class_names, users=users)
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] != 3)
        ):
            raise ValueError(
                f"{source} holds images of shape {images.shape} and type {images.dtype}; they have to be "
                "uint8 of shape (N, H, W) for grey or (N, H, W, 3) for colour."
            )
        if len(images) != len(labels):
            raise ValueError(
                f"{source} holds {len(images)} images and {len(labels)} labels; each image needs one."
            )
        self.images = images
        self._source = source

    def name(self, index: int) -> str:
        return f"{self._source}, image {index}"

    def read(self, index: int, *, check: Check | None = None) -> Image.Image:
        image = Image.fromarray(self.images[index])
        if check is not None:
            check(image)
        return image

    def array(self) -> np.ndarray | None:
        return self.images


class EncodedTable(ImageTable):
    """Images as files or bytes, decoded when they are read.

    Args:
        names: N names for messages.
        load_fn: the bytes of image i.
        labels, class_names, users, captions: as in `ImageTable`.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        load_fn: Callable[[int], bytes],
        labels: np.ndarray,
        class_names: Sequence[str],
        users: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
    ) -> None:
        super().__init__(labels, class_names=class_names, users=users, captions=captions)
        self._names = list(names)
        self._load_fn = load_fn

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int, *, check: Check | None = None) -> Image.Image:
        try:
            content = self._load_fn(index)
        except OSError as error:
            raise UnreadableImage(
                f"{self._names[index]} can't be read ({error.strerror or type(error).__name__}): replace or "
                "remove it, or set data.unreadable to skip."
            ) from error
        return decode(content, name=self._names[index], check=check)


class JoinedTable(ImageTable):
    """Several tables behind one another, under one list of classes.

    Args:
        tables: at least one.
        labels: (N,) over all of them.
        class_names: what they mean.
    """

    def __init__(
        self, tables: Sequence[ImageTable], *, labels: np.ndarray, class_names: Sequence[str]
    ) -> None:
        users = None
        if all(table.users is not None for table in tables):
            users = np.concatenate([np.asarray(table.users) for table in tables]).tolist()
        captions = None
        if all(table.captions is not None for table in tables):
            captions = [text for table in tables for text in table.captions or ()]
        super().__init__(labels, class_names=class_names, users=users, captions=captions)
        self._tables = list(tables)
        self._starts = np.cumsum([0, *(len(table) for table in tables)])
        assert len(self.labels) == self._starts[-1]

    def name(self, index: int) -> str:
        table, inner = self._find(index)
        return table.name(inner)

    def read(self, index: int, *, check: Check | None = None) -> Image.Image:
        table, inner = self._find(index)
        return table.read(inner, check=check)

    def array(self) -> np.ndarray | None:
        arrays = [table.array() for table in self._tables]
        whole = [array for array in arrays if array is not None]
        alike = len(whole) == len(arrays) and len({array.shape[1:] for array in whole}) == 1
        return np.concatenate(whole) if alike else None

    def _find(self, index: int) -> tuple[ImageTable, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._tables[number], index - int(self._starts[number])
