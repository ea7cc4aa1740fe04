"""Small private fits of both halves through Lightning, for the blocks that look at whole steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from gpu_blocks.setting import Setting
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.ema import EMA
from lightning_dp.images.class_gaussians import ClassGaussians
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.npz import NPZ
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.image_dit import ImageDiT
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean


def write_pictures(folder: Path, *, train: int, test: int, size: int = 28) -> list[str]:
    """Grey squares, bright, dark or striped, in two NPZ files; the names of the classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 3
        level = np.array([220.0, 30.0, 120.0])[labels][:, None, None]
        images = level + rng.normal(0, 8, (count, size, size))
        images[labels == 2, ::2] = 250
        np.savez(folder / f"{split}.npz", images=images.clip(0, 255).astype(np.uint8), labels=labels)
    return ["bright", "dark", "striped"]


def series(setting: Setting) -> tuple[LightningModule, LightningDataModule]:
    days = {"context_length": 72, "horizon": 24, "num_days": 24}
    data = HouseholdLoad(setting.of(1000, 20), batch_size=8, windows_per_user=2, **days)
    data.prepare_data()
    data.setup("fit")
    net = SeriesDiT(
        AdaLNZero(),
        length=96,
        num_channels=data.num_channels,
        num_covariates=data.num_covariates,
        hidden_size=setting.of(64, 16),
        depth=setting.of(2, 1),
        num_heads=2,
    )
    return TimeSeriesDiffusion(net, normaliser=DayMean(steps_per_day=24), num_samples=2), data


def images(setting: Setting, folder: Path) -> tuple[LightningModule, LightningDataModule]:
    names = write_pictures(folder, train=setting.of(2000, 24), test=6)
    net = ImageDiT(
        AdaLNZero(),
        in_channels=1,
        size=28,
        num_classes=3,
        patch_size=7,
        hidden_size=setting.of(96, 16),
        depth=setting.of(4, 1),
        num_heads=2,
    )
    prior = ClassGaussians(rank=2, noise_multiplier=4.0)
    module = LatentDiffusion(net, base_denoiser=prior, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    return module, ImageData(NPZ(str(folder), class_names=names), size=28, batch_size=8)


def private_fit(
    setting: Setting,
    half: str,
    *,
    folder: str,
    steps: int,
    callbacks: Sequence[Callback] = (),
    privacy: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """A short private fit of `series` or `images`; options are the trainer's."""
    module, data = series(setting) if half == "series" else images(setting, Path(folder))
    size = setting.of(64, 6)
    given = {"noise_multiplier": 1.0, "delta": 1e-3, "expected_batch_size": size}
    # Made-up rows, the same again in every folder: each fit has a ledger of its own.
    given |= {"ledger": str(Path(folder) / "ledger.sqlite"), **(privacy or {})}
    trainer = Trainer(
        accelerator="cpu" if setting.fake else "gpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[EMA(), *callbacks, DifferentialPrivacy(**given)],
        **options,
    )
    trainer.fit(module, datamodule=data)
    return trainer
