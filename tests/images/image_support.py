"""Small real images and modules for the tests of the image half."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.npz import NPZ
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.image_dit import ImageDiT
from lightning_dp.nets.image_net import ImageNet

CLASSES = ["bright", "dark", "stripes"]


def pictures(count: int, *, size: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S) uint8 of three kinds that even a small model tells apart, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    level = np.array([220, 30, 120])[labels][:, None, None]
    images = np.broadcast_to(level, (count, size, size)).astype(np.float64).copy()
    images[labels == 2, ::2] = 250
    images += rng.normal(0, 8, images.shape)
    return images.clip(0, 255).astype(np.uint8), labels


def write_npz(
    folder: Path, *, train: int = 60, test: int = 30, users: int | None = None, size: int = 8
) -> Path:
    """An NPZ data set of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((("train", train), ("test", test))):
        images, labels = pictures(count, size=size, seed=seed)
        extra = {} if users is None else {"users": np.arange(count) % users}
        np.savez(folder / f"{split}.npz", images=images, labels=labels, **extra)
    return folder


def npz_data(folder: Path, **options) -> ImageData:
    """Its data module."""
    options = {"size": 8, "batch_size": 20, **options}
    return ImageData(NPZ(str(folder), class_names=CLASSES), **options)


def write_png(path: Path, *, size: tuple[int, int] = (8, 8), mode: str = "L", level: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color=level if mode == "L" else (level, 10, 20)).save(path)
    return path


def tiny_net(**options) -> ImageDiT:
    defaults = {"in_channels": 1, "size": 8, "num_classes": len(CLASSES), "patch_size": 4}
    return ImageDiT(AdaLNZero(), **{**defaults, "hidden_size": 16, "depth": 1, "num_heads": 2, **options})


def awake(net: ImageNet) -> ImageNet:
    """The net with its zero-initialised weights filled, so that every gradient is there to be compared."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def tiny_module(**options) -> LatentDiffusion:
    return LatentDiffusion(
        options.pop("net", None) or tiny_net(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        **options,
    )
