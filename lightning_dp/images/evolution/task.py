"""Private images as Private Evolution sees them."""

import shutil
from pathlib import Path
from typing import Any, final

import numpy as np

from lightning_dp.archives import load_npz
from lightning_dp.evolution.task import EvolutionTask, PrivateRows
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.export import export_images, write_finished
from lightning_dp.images.sample_grid import grid_of_classes
from lightning_dp.privacy.report import read_privacy_report
from lightning_dp.privacy.units import UnitName
from lightning_dp.runs.abilities import SampleRequest, SampleWriter
from lightning_dp.runs.loaded_run import LoadedRun
from lightning_dp.tracking.layout import SAMPLES


@final
class ImageTask(EvolutionTask, SampleWriter):
    """The train split of an `ImageData`; a unit is an image, or a user with all of their images.

    Args:
        data: an `ImageData`; declared, not opened.

    Raises:
        ValueError: it holds something else.
    """

    sample_options = ("format",)

    def __init__(self, data: Any) -> None:
        if not isinstance(data, ImageData):
            raise ValueError(
                f"data is {type(data).__name__}; ImageTask evolves images, so give an ImageData."
            )
        self._data = data
        self.dataset_id = data.dataset_id
        self.unit_name: UnitName = "user" if data.unit == "user" else "record"
        self.class_names = tuple(data.class_names)
        self.sample_shape = (data.image_channels, data.size, data.size)

    def prepare(self) -> None:
        self._data.prepare_data()

    def read(self) -> PrivateRows:
        """All images, (R, C, S, S) uint8. Of a user every image counts, not a draw of them."""
        dataset, unit = self._data.train_dataset, self._data.privacy_unit()
        pixels = dataset.pixels
        rows = np.arange(len(pixels))
        owners = rows
        if self.unit_name == "user":
            assert pixels.users is not None
            owners = np.unique(pixels.users, return_inverse=True)[1]
        return PrivateRows(samples=pixels.get(rows), labels=pixels.labels, owners=owners, unit=unit)

    def write(self, folder: Path, samples: np.ndarray, labels: np.ndarray) -> None:
        """`samples/train.npz` with the privacy report beside it, and `plots/sample_grid.png`."""
        names = list(self.class_names)
        shutil.rmtree(folder / SAMPLES.parent, ignore_errors=True)  # of this run, written in part
        export_images(
            samples,
            labels=labels,
            class_names=names,
            out=folder / SAMPLES.parent,
            file_format="npz",
            report=read_privacy_report(folder),  # as this process has written it
            about={"run": folder.name},
        )
        grid_of_classes(samples, labels, class_names=names, path=folder / "plots" / "sample_grid.png")

    def read_samples(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """(n, C, S, S) uint8 and labels (n,)."""
        path = folder / SAMPLES
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {SAMPLES}: its Private Evolution has not finished; go on with it by "
                f"'lightning-dp evolve --config {folder / 'config.yaml'} --resume true'."
            )
        content = load_npz(path, "images", "labels", fix="make the samples again.")
        if set(content) != {"images", "labels"}:
            raise ValueError(f"{path} lacks images or labels: make the samples again.")
        pixels, labels = content["images"], content["labels"]
        return pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2), labels

    def write_samples(self, request: SampleRequest, *, run: LoadedRun) -> list[str]:
        """A folder of the finished images, or of some of each class."""
        return write_finished(request, run=run, class_names=self.class_names)

    def facts(self) -> dict[str, str | float | int]:
        return {"task": "image synthesis", **self._data.facts()}
