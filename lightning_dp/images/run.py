"""A finished run of the image half: what draws its images, and its data."""

from pathlib import Path
from typing import Any

from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.image_sampler import ImageSampler
from lightning_dp.runs.load import load_run
from lightning_dp.runs.loaded_run import LoadedRun


def load_module(run: Path, *, num_steps: int | None = None, rank: int | None = None) -> Any:
    """The module of a run with its final weights, ready to sample; on a GPU if there is one.

    Earlier stages' files are not needed: all weights are in the checkpoint, but those of a
    `DiffusersAutoencoder` and the frozen ones of a public checkpoint folder.

    Args:
        run: its folder.
        num_steps, rank: as of `set_sampling`.

    Raises:
        ValueError: the folder is no run of the image half, or takes no such number of steps or rank.
    """
    found = load_run(run)
    module = image_sampler(found)
    found.set_sampling(num_steps=num_steps, rank=rank)
    return module


def load_data(run: Path) -> ImageData:
    """The data module of a run, as its configuration describes it."""
    return image_data(load_run(run))


def image_sampler(run: LoadedRun) -> Any:
    """The run's module, if it draws images."""
    if not isinstance(run.module, ImageSampler):
        raise ValueError(
            f"{run.folder} is a run of {type(run.module).__name__}, which draws no images: give a run of "
            "LatentDiffusion, or of a module that is an ImageSampler."
        )
    return run.module


def image_data(run: LoadedRun) -> ImageData:
    """The run's data module, if it holds images."""
    if not isinstance(run.data, ImageData):
        raise ValueError(f"{run.folder} was trained on {type(run.data).__name__}, which holds no images.")
    return run.data
