"""A small private fit of images, and what of its weights moved."""

from pathlib import Path

import torch
from images.image_support import awake, npz_data, tiny_module, tiny_net, write_npz
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.nets.image_net import ImageNet

PRIVACY = {"noise_multiplier": 1.0, "delta": 1e-2, "expected_batch_size": 10}


def small_module(adapter: Adapter, *, net: ImageNet | None = None, depth: int = 1) -> LatentDiffusion:
    """AdamW with a weight decay that would show at once wherever it acted."""
    torch.manual_seed(0)
    module = tiny_module(net=awake(net or tiny_net(depth=depth)), adapter=adapter)
    module.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.5)
    return module


def fit(
    module: LatentDiffusion,
    folder: Path,
    *,
    steps: int = 2,
    callbacks: tuple[Callback, ...] = (),
    checkpoint: Path | None = None,
    users: int | None = None,
    precision: str = "32-true",
    **privacy,
) -> Trainer:
    """Train on 24 pictures under the privacy options given over the usual ones; None is no privacy."""
    pictures = folder / "pictures"
    if not pictures.exists():
        write_npz(pictures, train=24, users=users)
    private = [] if privacy.get("delta", 1) is None else [DifferentialPrivacy(**{**PRIVACY, **privacy})]
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        callbacks=[*callbacks, *private],
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    data = npz_data(pictures, **({} if users is None else {"unit": "user", "images_per_user": 2}))
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return trainer


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that are not bit for bit what they were."""
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
