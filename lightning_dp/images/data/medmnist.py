"""MedMNIST's files: small medical images, three splits in one npz (Yang et al. 2023, Sci. Data 10:41)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_dp.archives import load_npz
from lightning_dp.data_files import data_folder
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable

_SIDES = (28, 64, 128, 224)


class MedMNIST(ImageSource):
    """`DATA/NAME/NAME.npz`, at larger sides `NAME_128.npz`, with `train_images`, `train_labels`, `test_…`.

    Images are (N, S, S) or (N, S, S, 3) uint8, labels (N, 1): one class an image. The validation split is
    read by nobody.

    Args:
        name: of the set, such as bloodmnist; also its name in ledgers and results.
        class_names: what 0, 1, … mean, as MedMNIST lists them.
        side: of the images, one of 28, 64, 128, 224.
        data_dir: folder that holds one named as the set; None = LIGHTNING_DP_DATA, or a cache folder of the
            user where that is unset.
    """

    def __init__(
        self, *, name: str, class_names: Sequence[str], side: int = 28, data_dir: str | None = None
    ) -> None:
        if side not in _SIDES:
            raise ValueError(
                f"{type(self).__name__}.side is {side}; MedMNIST has {', '.join(map(str, _SIDES))}: take "
                "one, and data.other_sizes for another."
            )
        self.dataset_id = name
        self.class_names = tuple(class_names)
        self._path = data_folder(data_dir) / name / f"{name}{'' if side == _SIDES[0] else f'_{side}'}.npz"

    def files(self) -> list[Path]:
        """The one file of the data set."""
        return [self._path]

    def open(self, split: Split) -> ArrayTable:
        images, labels = _read(self._path, f"{split}_images", f"{split}_labels")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise ValueError(
                f"{self._path} has labels of shape {labels.shape}, several an image: take a set with one "
                "class an image, such as octmnist."
            )
        return ArrayTable(
            images, labels=labels, class_names=self.class_names, source=f"{self._path}, {split}"
        )


def _read(path: Path, *names: str) -> list[np.ndarray]:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: put MedMNIST's file there by hand, or point LIGHTNING_DP_DATA (or data_dir) "
            "at a folder that holds it."
        )
    content = load_npz(path, fix="download it again.")
    missing = [name for name in names if name not in content]
    if not missing:
        return [content[name] for name in names]
    found = ", ".join(content)
    raise ValueError(
        f"{path} has no {missing[0]} but {found or 'nothing'}: it is no file of MedMNIST's; your own arrays "
        "are read by lightning_dp.images.NPZ."
    )
