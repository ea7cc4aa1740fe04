"""Reading a finished run back: its module with the final weights, and its data."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import instantiate_module

from lightning_dp.adapters.dylora import use_rank
from lightning_dp.images.checkpoint import read_checkpoint
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.strategies.device import command_device
from lightning_dp.tracking.layout import CHECKPOINT
from lightning_dp.tracking.run_config import model_class, read_run_config


def load_module(run: Path, *, num_steps: int | None = None, rank: int | None = None) -> LatentDiffusion:
    """The module of a run with the weights of its last checkpoint, ready to sample; on a GPU if there is one.

    Earlier stages' files are not needed: all weights are in the checkpoint, but those of a
    `DiffusersAutoencoder` and the frozen ones of a public checkpoint folder.

    Args:
        run: its folder.
        num_steps: ≥ 1 steps of the sampler; None for the run's own.
        rank: of a run that trained a `DyLoRA`, which of its ranks to use; None for the largest.

    Raises:
        ValueError: the folder is no run of the image half, or takes no such number of steps or rank.
    """
    kind = model_class(run)
    if not issubclass(kind, LatentDiffusion):
        raise ValueError(f"{run} is a run of {kind.__name__}; images are drawn from runs of LatentDiffusion.")
    checkpoint = read_checkpoint(run / CHECKPOINT)
    settings = dict(checkpoint.get("hyper_parameters", {}))
    if settings.pop("_instantiator", None) is None:
        raise ValueError(
            f"{run / CHECKPOINT} holds no configuration: it was not trained by 'lightning-dp fit'; load it "
            "by LatentDiffusion.load_from_checkpoint with its net and autoencoder."
        )
    autoencoder = (settings.get("autoencoder") or {}).get("init_args", {})
    if "weights" in autoencoder:
        autoencoder["weights"] = None
    module = instantiate_module(LatentDiffusion, settings)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    if num_steps is not None:
        module.sampler.num_steps = num_steps
    if rank is not None:
        use_rank(module.adapter, rank)
    return module.eval().to(command_device())


def load_data(run: Path) -> ImageData:
    """The data module of a run, as its configuration describes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    found: Any = parser.instantiate_classes(parser.parse_object({"data": read_run_config(run)["data"]})).data
    if not isinstance(found, ImageData):
        raise ValueError(f"{run} was trained on {type(found).__name__}, which holds no images.")
    return found
