"""What sources of a user's own files have in common."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_dp.archives import inside
from lightning_dp.images.data.source import Split
from lightning_dp.told import told

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def existing_folder(path: str, *, field: str) -> Path:
    """The folder, or a ValueError that names the field."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{field}={path} is not a folder: give the one that holds the images.")
    return folder


def name_of(path: str, dataset_id: str | None) -> str:
    """What the ledger calls a user's data: the given name, else the last part of its path."""
    return dataset_id or Path(path).expanduser().resolve().name


def files_of(folder: Path, *, split: Split, suffix: str) -> list[Path]:
    """`SPLIT*suffix` in name order; none for a missing test split.

    Raises:
        ValueError: there are none for train.
    """
    files = sorted(folder.glob(f"{split}*{suffix}"))
    check_inside(files, folder=folder)
    if not files and split == "train":
        raise ValueError(
            f"{folder} has no file train*{suffix}: name the files by their split, train-0000{suffix} and "
            f"test-0000{suffix} for instance."
        )
    return files


def check_inside(files: Sequence[Path], *, folder: Path) -> None:
    """Raise ValueError for a link out of the folder: what it shows belongs to somebody else's data."""
    for path in files:
        if not inside(path, folder):
            raise ValueError(
                f"{path} is a link that leads out of {folder}: put the file itself there, or remove the link."
            )


def captions_of(values: Sequence[object], *, names: Sequence[str], where: str, fix: str) -> list[str]:
    """A text for each image; "" is one, and says nothing.

    Args:
        values: N texts, or something else where one is missing.
        names: N names for the message.
        where: what holds the texts, such as ".txt".
        fix: the option that asks for them, set so that it doesn't.

    Raises:
        ValueError: one is missing.
    """
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            raise ValueError(
                f"{name} has no caption in {where} (it has {told(value)}): add it, an empty text where there "
                f"is nothing to say, or set {fix}."
            )
    return [str(value) for value in values]


def class_numbers(
    values: Sequence[object], *, class_names: Sequence[str], names: Sequence[str]
) -> np.ndarray:
    """Labels given as a number or a name, as numbers; None stays −1.

    Args:
        values: N labels.
        class_names: the classes.
        names: N names for the message.

    Raises:
        ValueError: one is neither a number nor one of the names. Numbers out of range are found later.
    """
    known = {name: number for number, name in enumerate(class_names)}
    labels = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        text = str(value)
        if value is None or value is np.nan:
            labels[row] = -1
        elif text in known:
            labels[row] = known[text]
        elif text.lstrip("-").isdigit():
            labels[row] = int(text)
        else:
            raise ValueError(
                f"{names[row]} has as its label {told(value)}, which is none of the class_names "
                f"({', '.join(class_names)[:120]}): correct it, or add the class."
            )
    return labels
