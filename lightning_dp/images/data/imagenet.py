"""Downsampled ImageNet (Chrabaszcz, Loshchilov, Hutter, arXiv 1707.08819): 1,281,167 images in 1,000 classes.

Both published forms are read: batches as numpy's npz, and as Python pickles, of which only arrays and plain
values are accepted. Nothing is downloaded: image-net.org asks who you are.
"""

from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from lightning_dp.archives import load_npz
from lightning_dp.data_files import data_folder
from lightning_dp.images.data.pickled import colour_last, read_pickle
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable

_CLASSES = 1000
_STEMS: dict[Split, str] = {"train": "train_data_batch_", "test": "val_data"}


class _Downsampled(ImageSource):
    """What all sizes have in common: a folder with train_data_batch_1 … 10 and val_data, one form of both.

    Attributes:
        _side: in pixels.
    """

    public = True
    class_names = tuple(str(number) for number in range(1, _CLASSES + 1))
    _side: ClassVar[int]

    def __init__(self, *, data_dir: str | None = None, labelled: bool = True) -> None:
        """
        Args:
            data_dir: folder that holds one named as `dataset_id` with the batches; None = LIGHTNING_DP_DATA,
                or a cache folder of the user where that is unset.
            labelled: False takes all images as one unlabelled set.
        """
        self._data_dir = data_dir
        self._labelled = labelled
        if not labelled:
            self.class_names = ()

    def files(self) -> list[Path]:
        """The folder of the data set."""
        return [data_folder(self._data_dir) / self.dataset_id]

    def open(self, split: Split) -> ArrayTable | None:
        folder = data_folder(self._data_dir) / self.dataset_id
        found = sorted(folder.glob(f"{_STEMS[split]}*"), key=lambda path: (len(path.stem), path.name))
        found = [path for path in found if path.suffix in ("", ".npz")]
        if not found:
            if split == "test":
                return None
            raise ValueError(
                f"{folder} has no {_STEMS[split]}1: get the images of {self._side} pixels from "
                "image-net.org, unpack them there, or point LIGHTNING_DP_DATA (or data_dir) at a "
                f"folder that holds {self.dataset_id}/."
            )
        batches = [self._batch(path) for path in found if path.suffix == found[0].suffix]
        labels = np.concatenate([labels for _, labels in batches])
        return ArrayTable(
            np.concatenate([images for images, _ in batches]),
            labels=labels if self._labelled else np.full(len(labels), -1),
            class_names=self.class_names,
            source=str(folder / _STEMS[split]),
        )

    def _batch(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        if path.suffix == ".npz":
            content = _npz(path)
        else:
            content = read_pickle(path.read_bytes(), where=str(path), what="ImageNet")
        try:
            pixels = np.asarray(content["data"], dtype=np.uint8)
            labels = np.asarray(content["labels"], dtype=np.int64)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{path} holds no batch of ImageNet ({error}): data and labels are due; get it again."
            ) from error
        if pixels.ndim != 2 or pixels.shape[1] != 3 * self._side**2:
            raise ValueError(
                f"{path} holds pixels of shape {pixels.shape}, and images of {self._side} × {self._side} "
                f"have (N, {3 * self._side**2}): take the source of their size."
            )
        return colour_last(pixels, side=self._side), labels - 1  # the files count classes from 1


@final
class ImageNet32(_Downsampled):
    """Images of 32 × 32 colour pixels, 4 GB in memory: what DP-LDM trains on before CIFAR-10."""

    dataset_id = "imagenet32"
    _side = 32


@final
class ImageNet64(_Downsampled):
    """Images of 64 × 64 colour pixels, 16 GB in memory: what DP-LDM trains on before CelebA."""

    dataset_id = "imagenet64"
    _side = 64


def _npz(path: Path) -> dict[str, Any]:
    return load_npz(path, "data", "labels", fix="get it again.")
