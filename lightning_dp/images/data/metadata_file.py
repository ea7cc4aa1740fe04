"""Captions in a file beside the images, in the layout that Hugging Face's image folders use."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_dp.archives import parse_json
from lightning_dp.told import told_error

_FILES = ("metadata.jsonl", "metadata.csv")


def read_captions(folder: Path) -> dict[Path, object]:
    """By path of the image what stands in `text`, from FOLDER/metadata.jsonl or metadata.csv.

    Each row has `file_name`, relative to the folder, and `text`.

    Raises:
        ValueError: there is no such file, or a row of it names no file.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"{folder} has neither {' nor '.join(_FILES)}, and captions is true: write one with file_name "
            "and text for each image, or set captions to false."
        )
    captions: dict[Path, object] = {}
    for number, row in enumerate(_rows(path), start=1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f"{path}, row {number} names no image: give each row file_name and text.")
        captions[folder / row["file_name"]] = row.get("text")
    return captions


def _rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
            else:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield parse_json(line, where=f"{path}, line {number}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} can't be read ({told_error(error)}): correct it.") from error
