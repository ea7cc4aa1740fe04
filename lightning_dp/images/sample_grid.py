"""A picture of samples, a row per class, at the end of every test."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_dp.images.data.dataset import to_bytes
from lightning_dp.lightning_internals import datamodule_of, is_rehearsal
from lightning_dp.protocols import NamesClasses, provides
from lightning_dp.tracking.palette import INK

_COLUMNS = 10
_MOST_ROWS = 20
_SEED = 0


class SampleGrid(Callback):
    """Draws `plots/sample_grid.png` from the module's `sample`: the first samples of a seed, not chosen "
    "ones."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        data = datamodule_of(trainer)
        if not trainer.is_global_zero:
            return
        if is_rehearsal(trainer):
            module.sample(torch.zeros(1, dtype=torch.int64) if module.net.num_classes else torch.tensor([-1]))
            return
        names = list(data.class_names if provides(data, NamesClasses) else ())[: module.net.num_classes]
        folder = Path(trainer.default_root_dir) / "plots"
        draw_samples(module, class_names=names, path=folder / "sample_grid.png")


def draw_samples(module: Any, *, class_names: list[str], path: Path) -> None:
    """Sample ten images of each class (of no class where there are none) and save the grid."""
    rows = min(len(class_names), _MOST_ROWS) or _COLUMNS
    labels = (
        torch.arange(rows).repeat_interleave(_COLUMNS) if class_names else torch.full((rows * _COLUMNS,), -1)
    )
    generator = torch.Generator(device=module.device).manual_seed(_SEED)
    images = to_bytes(module.sample(labels, generator=generator))
    path.parent.mkdir(parents=True, exist_ok=True)
    sample_grid(images, row_names=class_names[:rows]).savefig(path)


def grid_of_classes(samples: np.ndarray, labels: np.ndarray, *, class_names: list[str], path: Path) -> None:
    """Save the grid of the first ten samples of each class; nothing where a class has fewer.

    Args:
        samples: (N, C, S, S) uint8.
        labels: (N,).
        class_names: [] for a grid of the first hundred.
        path: of the picture.
    """
    rows = min(len(class_names), _MOST_ROWS) or _COLUMNS
    own = [np.flatnonzero(labels == number)[:_COLUMNS] for number in range(rows)]
    shown = np.concatenate(own) if class_names else np.arange(len(samples))[: rows * _COLUMNS]
    if len(shown) == rows * _COLUMNS:
        path.parent.mkdir(parents=True, exist_ok=True)
        sample_grid(samples[shown], row_names=class_names[:rows]).savefig(path)


def sample_grid(images: np.ndarray, *, row_names: list[str]) -> Figure:
    """Ten images a row, enlarged without smoothing, with the rows' names.

    Args:
        images: (10·R, C, S, S) uint8, row by row.
        row_names: R names, or [] for none.
    """
    rows, side = len(images) // _COLUMNS, images.shape[-1]
    gap = max(1, side // 14)
    step = side + gap
    canvas = np.full((rows * step - gap, _COLUMNS * step - gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // _COLUMNS * step, index % _COLUMNS * step
        canvas[top : top + side, left : left + side] = image.transpose(1, 2, 0)
    margin = 1.1 if row_names else 0.1
    cell = 0.62
    width, height = margin + _COLUMNS * cell + 0.1, rows * cell + 0.2
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.add_axes((margin / width, 0.1 / height, _COLUMNS * cell / width, rows * cell / height))
    axis.imshow(canvas, interpolation="nearest", aspect="auto")
    axis.set_xticks([])
    axis.set_yticks(
        [side / 2 + row * step for row in range(len(row_names))], row_names, fontsize=9, color=INK
    )
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure
