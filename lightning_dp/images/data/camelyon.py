"""Camelyon17 of WILDS: patches of lymph nodes, with a tumour in the middle or none (Koh et al. 2021)."""

import csv
from pathlib import Path
from typing import final

import numpy as np

from lightning_dp.data_files import data_folder
from lightning_dp.images.data.decoding import read_encoded
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import EncodedTable
from lightning_dp.told import told

_FOLDER = "camelyon17_v1.0"
_NEEDED = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
_OTHER_HOSPITALS = {"1": "validation", "2": "test"}


@final
class Camelyon17(ImageSource):
    """`DATA/camelyon17_v1.0/` with metadata.csv and patches/, as WILDS publishes it: 96 × 96 pixels, RGB.

    Train are 302,436 patches of hospitals 0, 3 and 4, test the 85,054 of hospital 2; those that WILDS keeps
    for validation, among them all of hospital 1, are read by nobody. A user is a patient.

    Args:
        data_dir: folder that holds camelyon17_v1.0/; None = LIGHTNING_DP_DATA, or a cache folder of the user
            where that is unset.
    """

    dataset_id = "camelyon17"
    class_names = ("normal", "tumor")

    def __init__(self, *, data_dir: str | None = None) -> None:
        self._folder = data_folder(data_dir) / _FOLDER

    def files(self) -> list[Path]:
        """The folder of the data set."""
        return [self._folder]

    def open(self, split: Split) -> EncodedTable:
        rows = [row for row in self._rows() if _split_of(row) == split]
        if not rows:
            raise ValueError(
                f"{self._folder / 'metadata.csv'} has no patch of {split}: copy the file again, as WILDS "
                "publishes it."
            )
        paths = [self._folder / _path_of(row) for row in rows]
        if not paths[0].is_file():
            raise ValueError(
                f"{paths[0]} is missing: unpack WILDS' archive, or point LIGHTNING_DP_DATA (or data_dir) at "
                "the folder that holds it."
            )
        return EncodedTable(
            [str(path) for path in paths],
            load_fn=lambda index: read_encoded(paths[index]),
            labels=np.array([int(row["tumor"]) for row in rows]),
            class_names=self.class_names,
            users=[row["patient"] for row in rows],
        )

    def _rows(self) -> list[dict[str, str]]:
        path = self._folder / "metadata.csv"
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: put WILDS' camelyon17_v1.0 there by hand, or point LIGHTNING_DP_DATA "
                "(or data_dir) at a folder that holds it."
            )
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows, start=2):
            empty = [name for name in _NEEDED if not row.get(name)]
            if empty or row["tumor"] not in ("0", "1"):
                wrong = f"no {empty[0]}" if empty else f"tumor {told(row['tumor'])}"
                raise ValueError(
                    f"{path}, line {number} has {wrong}; it needs {', '.join(_NEEDED)}, with "
                    "tumor 0 or 1: copy the file again."
                )
        return rows


def _split_of(row: dict[str, str]) -> str:
    if row["center"] in _OTHER_HOSPITALS:
        return _OTHER_HOSPITALS[row["center"]]
    return "train" if row["split"] == "0" else "validation"


def _path_of(row: dict[str, str]) -> str:
    node = f"patient_{row['patient']}_node_{row['node']}"
    return f"patches/{node}/patch_{node}_x_{row['x_coord']}_y_{row['y_coord']}.png"
