"""A user's images as numpy files."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from lightning_dp.archives import load_npz
from lightning_dp.images.data.own_files import existing_folder, name_of
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable


@final
class NPZ(ImageSource):
    """`PATH/train.npz` and `PATH/test.npz`, each with `images`, and `labels` and `users` where there are any.

    `images` is uint8 of shape (N, H, W) or (N, H, W, 3), `labels` (N,) whole numbers, `users` (N,) numbers or
    names. This is also what `lightning-dp sample` writes.

    Args:
        path: the folder.
        class_names: what the labels mean, as a public fact; [] where there are none.
        dataset_id: name in ledgers and results; None = the folder's name.
    """

    def __init__(self, path: str, *, class_names: Sequence[str] = (), dataset_id: str | None = None) -> None:
        self._folder = existing_folder(path, field="NPZ.path")
        self.class_names = tuple(class_names)
        self.dataset_id = name_of(path, dataset_id)

    def files(self) -> list[Path]:
        """Those of both splits, or of train alone."""
        test = self._folder / "test.npz"
        return [self._folder / "train.npz", *([test] if test.exists() else [])]

    def open(self, split: Split) -> ArrayTable | None:
        path = self._folder / f"{split}.npz"
        if not path.exists() and split == "test":
            return None
        content = _read(path)
        images = content["images"]
        unlabelled = np.full(len(images), -1)
        users = content.get("users")
        return ArrayTable(
            images,
            labels=content.get("labels", unlabelled) if self.class_names else unlabelled,
            class_names=self.class_names,
            users=None if users is None else [str(user) for user in users],
            source=str(path),
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    content = load_npz(path, fix="save images=, labels= and users= there by numpy.savez.")
    if "images" not in content:
        raise ValueError(
            f"{path} has {', '.join(content) or 'nothing'} and no 'images': save them as images=."
        )
    return content
