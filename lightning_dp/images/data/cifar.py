"""CIFAR-10 and CIFAR-100: 50,000 train and 10,000 test images of 32 × 32 colour pixels (Krizhevsky 2009).

Both published archives are read, the binary one and the one of Python pickles; of a pickle only numpy
arrays and plain values are accepted. What is downloaded is the binary one.
"""

import tarfile
import zlib
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from lightning_dp.archives import read_at_most
from lightning_dp.data_files import check_digest, data_folder, ensure_file
from lightning_dp.images.data.pickled import colour_last, read_pickle
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable

_SIDE = 32
_MAX_BATCH = 2**30
_PIXELS = 3 * _SIDE * _SIDE
_ADDRESS = "https://www.cs.toronto.edu/~kriz"


class _Cifar(ImageSource):
    """What both have in common: one archive with a file or more per split.

    Attributes:
        _archive: name without its ending -binary.tar.gz or -python.tar.gz.
        _label_bytes: bytes before the pixels of a binary record; the last one is the class.
        _label_key: of the pickles.
        _members: parts of a member's name that belong to a split, binary or pickled alike.
    """

    _archive: str
    _md5: ClassVar[dict[str, str]]
    _label_bytes: int
    _label_key: str
    _members: ClassVar[dict[Split, tuple[str, ...]]]

    def __init__(self, *, data_dir: str | None = None) -> None:
        """
        Args:
            data_dir: folder that holds one named as `dataset_id` with either archive; None =
                LIGHTNING_DP_DATA, or a cache folder of the user where that is unset.
        """
        self._data_dir = data_dir

    def files(self) -> list[Path]:
        """The folder of the data set."""
        return [data_folder(self._data_dir) / self.dataset_id]

    def open(self, split: Split) -> ArrayTable:
        folder = data_folder(self._data_dir) / self.dataset_id
        path = folder / f"{self._archive}-python.tar.gz"
        if not path.exists():
            name = f"{self._archive}-binary.tar.gz"

            def check(content: bytes, where: str) -> None:
                check_digest(content, expected=self._md5[name], method="md5", where=where)

            path = ensure_file(folder / name, url=f"{_ADDRESS}/{name}", check=check)
        images, labels = [], []
        try:
            with tarfile.open(path) as archive:
                for member in sorted(archive.getmembers(), key=lambda member: member.name):
                    file = archive.extractfile(member) if self._wanted(member.name, split) else None
                    if file is not None:
                        where = f"{path}, {member.name}"
                        read = self._from_pickle if "-python" in path.name else self._from_binary
                        content = read_at_most(file, _MAX_BATCH, where=where)  # type: ignore[arg-type]
                        pixels, classes = read(content, where=where)
                        images.append(pixels)
                        labels.append(classes)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole archive ({error}): download it again.") from error
        if not images:
            raise ValueError(
                f"{path} has no {' or '.join(self._members[split])}: it is another archive; download it "
                "again."
            )
        return ArrayTable(
            np.concatenate(images),
            labels=np.concatenate(labels),
            class_names=self.class_names,
            source=str(path),
        )

    def _wanted(self, member: str, split: Split) -> bool:
        return Path(member).name.removesuffix(".bin") in self._members[split]

    def _from_binary(self, content: bytes, *, where: str) -> tuple[np.ndarray, np.ndarray]:
        record = self._label_bytes + _PIXELS
        if len(content) % record:
            raise ValueError(
                f"{where} has {len(content)} bytes, which is no multiple of {record}: it is cut short or "
                "damaged; download it again."
            )
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
        return colour_last(rows[:, self._label_bytes :], side=_SIDE), rows[:, self._label_bytes - 1].astype(
            np.int64
        )

    def _from_pickle(self, content: bytes, *, where: str) -> tuple[np.ndarray, np.ndarray]:
        batch = read_pickle(content, where=where, what="CIFAR")
        try:
            pixels, labels = np.asarray(batch["data"], dtype=np.uint8), batch[self._label_key]
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{where} is not a batch of CIFAR ({error}): download it again.") from error
        return colour_last(pixels, side=_SIDE), np.asarray(labels, dtype=np.int64)


@final
class CIFAR10(_Cifar):
    """Ten classes."""

    dataset_id = "cifar10"
    class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    _archive = "cifar-10"
    _md5: ClassVar[dict[str, str]] = {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}
    _label_bytes = 1
    _label_key = "labels"
    _members: ClassVar[dict[Split, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
    }


@final
class CIFAR100(_Cifar):
    """A hundred classes, here by their number."""

    dataset_id = "cifar100"
    class_names = tuple(str(number) for number in range(100))
    _archive = "cifar-100"
    _md5: ClassVar[dict[str, str]] = {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}
    _label_bytes = 2  # the coarse class, then the fine one
    _label_key = "fine_labels"
    _members: ClassVar[dict[Split, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}
