"""CelebA: 162,770 train and 19,962 test faces with 40 attributes, of 10,177 people (Liu et al. 2015)."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from lightning_dp.data_files import data_folder
from lightning_dp.images.data.decoding import read_encoded
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import EncodedTable

_PARTITIONS: dict[Split, str] = {"train": "0", "test": "2"}  # "1" is validation
_ATTRIBUTES, _PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"
_PEOPLE, _IMAGES = "identity_CelebA.txt", "img_align_celeba"


@final
class CelebA(ImageSource):
    """`DATA/celeba/` with img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt, as published.

    Args:
        attribute: that makes the two classes; "Male" is usual. None leaves all images unlabelled.
        class_names: of its absence and presence; None for female and male, or "not X" and "X".
        people: whether identity_CelebA.txt says who is seen, for `data.unit: user`.
        data_dir: folder that holds celeba/; None = LIGHTNING_DP_DATA, or a cache folder of the user where
            that is unset.
    """

    dataset_id = "celeba"

    def __init__(
        self,
        *,
        attribute: str | None = "Male",
        class_names: Sequence[str] | None = None,
        people: bool = False,
        data_dir: str | None = None,
    ) -> None:
        if class_names is not None and (attribute is None or len(class_names) != 2):
            raise ValueError(
                f"CelebA.class_names is {list(class_names)}, but an attribute makes two classes and none "
                "makes none: name its absence and its presence, or leave them out."
            )
        self._attribute = attribute
        self._people = people
        self._folder = data_folder(data_dir) / self.dataset_id
        self.class_names = tuple(class_names) if class_names is not None else _usual_names(attribute)

    def files(self) -> list[Path]:
        """The folder of the data set."""
        return [self._folder]

    def open(self, split: Split) -> EncodedTable:
        part = self._column(_PARTITION)
        names = [name for name, number in part.items() if number == _PARTITIONS[split]]
        if not names:
            raise ValueError(
                f"{self._folder / _PARTITION} puts no image into {split} ({_PARTITIONS[split]}): copy the "
                "file again."
            )
        labels = np.full(len(names), -1)
        if self._attribute is not None:
            present = self._attribute_of_all()
            labels = np.array([self._of(present, name, file=_ATTRIBUTES) == "1" for name in names], dtype=int)
        users = None
        if self._people:
            people = self._column(_PEOPLE)
            users = [self._of(people, name, file=_PEOPLE) for name in names]
        paths = [self._folder / _IMAGES / name for name in names]
        if not paths[0].is_file():
            raise ValueError(
                f"{paths[0]} is missing: unpack img_align_celeba.zip in {self._folder}, or point "
                "LIGHTNING_DP_DATA (or data_dir) at the folder that holds it."
            )
        return EncodedTable(
            [str(path) for path in paths],
            load_fn=lambda index: read_encoded(paths[index]),
            labels=labels,
            class_names=self.class_names,
            users=users,
        )

    def _attribute_of_all(self) -> dict[str, str]:
        path = self._folder / _ATTRIBUTES
        lines = _lines(path)
        known = lines[1].split() if len(lines) > 1 else []
        if self._attribute not in known:
            raise ValueError(
                f"CelebA.attribute is {self._attribute!r}, which {path} does not have; it has "
                f"{', '.join(known)[:160] or 'none'}."
            )
        column = known.index(self._attribute) + 1
        rows = [line.split() for line in lines[2:]]
        for number, row in enumerate(rows, start=3):
            if len(row) != len(known) + 1 or row[column] not in ("1", "-1"):
                raise ValueError(
                    f"{path}, line {number} is no image with {len(known)} attributes of 1 or -1: copy the "
                    "file again."
                )
        return {row[0]: row[column] for row in rows}

    def _column(self, file: str) -> dict[str, str]:
        """By image's name what a file of two columns says."""
        path = self._folder / file
        rows = [line.split() for line in _lines(path)]
        wrong = [number for number, row in enumerate(rows, start=1) if len(row) != 2]
        if wrong:
            raise ValueError(f"{path}, line {wrong[0]} is no name and number: copy the file again.")
        return dict(rows)

    def _of(self, known: dict[str, str], name: str, *, file: str) -> str:
        if name not in known:
            raise ValueError(f"{self._folder / file} lacks {name}, which {_PARTITION} names: copy it again.")
        return known[name]


def _usual_names(attribute: str | None) -> tuple[str, ...]:
    if attribute is None:
        return ()
    if attribute == "Male":
        return ("female", "male")
    words = attribute.replace("_", " ").lower()
    return (f"not {words}", words)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: put CelebA's files there by hand, or point LIGHTNING_DP_DATA (or data_dir) "
            "at a folder that holds them."
        )
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
