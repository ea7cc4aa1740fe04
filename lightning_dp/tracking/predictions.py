"""`predictions.npz` in the run folder: what `lightning-dp predict` forecast."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class PredictionWriter(Callback):
    """Joins the tensors that `predict_step` returns in a dict, along the first dimension, and saves them.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "predictions.npz"
        self._parts: dict[str, list[Tensor]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, dict):
            raise ValueError(
                f"{type(pl_module).__name__}.predict_step returns a {type(outputs).__name__}; "
                "return a dict of tensors to have it saved"
            )
        for name, value in outputs.items():
            self._parts.setdefault(name, []).append(value.detach().cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            arrays = {name: torch.cat(parts).numpy() for name, parts in self._parts.items()}
            np.savez_compressed(self._path, **arrays)  # type: ignore[arg-type]
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            print(f"{self._path}: {shapes}")
