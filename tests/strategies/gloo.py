"""Fits on real gloo ranks, each a process of its own, with a witness in each."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.strategies.private_ddp import PrivateDDP


class Witness(Callback):
    """Writes what one rank saw and ended with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        seen = getattr(pl_module, "seen", [])
        torch.save(
            {
                "weights": weights,
                "seen": torch.cat(seen) if seen else torch.empty(0),
                "batches": len(seen),
                "step": trainer.global_step,
                "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
                "drawn": getattr(self.noise, "drawn", []),
                "totals": getattr(self.noise, "totals", []),
            },
            self.folder / f"rank{trainer.global_rank}.pt",
        )


class NoNoise(GaussianNoise):
    """Keeps the sums that noise would be added to, and adds none."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: list[Tensor] = []

    def add_to(self, sums: Tensor, *, scale: float) -> Tensor:
        self.totals.append(sums.flatten().clone())
        return sums


def fit_on_ranks(
    world_size: int,
    module: LightningModule,
    data: LightningDataModule,
    privacy: DifferentialPrivacy | None,
    *,
    folder: Path,
    steps: int = 1,
    strategy: Any = None,
) -> list[dict[str, Any]]:
    """Train on `world_size` forked gloo ranks; what each rank's witness wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    witness = Witness(folder)
    witness.noise = None if privacy is None else privacy._noise
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=world_size,
        strategy=strategy or PrivateDDP(start_method="fork"),
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([privacy] if privacy else []), witness],
    )
    trainer.fit(module, datamodule=data)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world_size)]
