"""Reading checkpoints of earlier stages."""

import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_dp.tracking.run_config import trusted_classes


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint on the CPU; a file that would run code when it is unpickled is refused.

    Raises:
        ValueError: it is missing or not a checkpoint.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"{path} is not a file: give the checkpoint of an earlier stage, RUN/checkpoints/last.ckpt, and "
            "train that stage first."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path} can't be read as a checkpoint ({type(error).__name__}): it is damaged or of another "
            "kind."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a Lightning checkpoint: it has no state_dict.")
    trusted_classes(checkpoint.get("hyper_parameters"), where=path)  # stages are made by these settings
    return checkpoint
