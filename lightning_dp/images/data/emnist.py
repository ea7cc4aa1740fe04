"""EMNIST's letters: 124,800 train and 20,800 test images of 28 × 28 grey pixels in 26 classes.

Cohen, Afshar, Tapson, van Schaik 2017 (arXiv 1702.05373), from NIST's Special Database 19: what DP-LDM trains
on before MNIST. Some of the writers are those of MNIST's digits.
"""

import zipfile
import zlib
from pathlib import Path
from typing import final

import numpy as np

from lightning_dp.archives import read_at_most
from lightning_dp.data_files import data_folder
from lightning_dp.images.data.idx import read_idx
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable

_ARCHIVE = "gzip.zip"
_MAX_MEMBER = 2**30


@final
class EMNIST(ImageSource):
    """Handwritten letters, capital and small alike, as the split `letters` has them.

    Args:
        data_dir: folder that holds one named `emnist`, with the published gzip.zip or its idx files
            emnist-letters-….gz; None = LIGHTNING_DP_DATA, or a cache folder of the user where that is unset.
    """

    public = True
    dataset_id = "emnist"
    class_names = tuple("abcdefghijklmnopqrstuvwxyz")

    def __init__(self, *, data_dir: str | None = None) -> None:
        self._data_dir = data_dir

    def files(self) -> list[Path]:
        """The folder of the data set."""
        return [data_folder(self._data_dir) / self.dataset_id]

    def open(self, split: Split) -> ArrayTable:
        folder = data_folder(self._data_dir) / self.dataset_id
        images, labels = (
            _read(folder, f"emnist-letters-{split}-{kind}-ubyte.gz")
            for kind in ("images-idx3", "labels-idx1")
        )
        where = str(folder / f"emnist-letters-{split}")
        if images.shape[1:] != (28, 28) or labels.min(initial=1) < 1 or labels.max(initial=1) > 26:
            raise ValueError(
                f"{where} holds images of {images.shape[1:]} and labels from {labels.min(initial=1)} to "
                f"{labels.max(initial=1)}, and EMNIST's letters are (28, 28) from 1 to 26: take the "
                "published gzip.zip."
            )
        # The files hold columns where others hold rows, and count letters from 1.
        upright = np.ascontiguousarray(images.transpose(0, 2, 1))
        return ArrayTable(
            upright, labels=labels.astype(np.int64) - 1, class_names=self.class_names, source=where
        )


def _read(folder: Path, name: str) -> np.ndarray:
    path, archive = folder / name, folder / _ARCHIVE
    if path.is_file():
        return read_idx(path.read_bytes(), where=str(path))
    if not archive.is_file():
        raise ValueError(
            f"{path} is missing, and so is {_ARCHIVE}: put NIST's archive, or its file, there by hand, or "
            "point LIGHTNING_DP_DATA (or data_dir) at a folder that holds emnist/."
        )
    try:
        with zipfile.ZipFile(archive) as content:
            member = next((own for own in content.namelist() if own.rsplit("/", 1)[-1] == name), None)
            if member is None:
                raise ValueError(f"{archive} has no {name}: it is another archive; take NIST's gzip.zip.")
            with content.open(member) as file:
                packed = read_at_most(file, _MAX_MEMBER, where=f"{archive}, {name}")  # type: ignore[arg-type]
            return read_idx(packed, where=f"{archive}, {name}")
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{archive} is not a whole archive ({type(error).__name__}): copy it again."
        ) from error
