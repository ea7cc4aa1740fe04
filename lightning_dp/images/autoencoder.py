"""Autoencoders between images and the space in which they are diffused; frozen in every diffusion stage.

Scope: the interface, pixels as they are, and a small one of our own; diffusers' are in
`diffusers_autoencoder.py`, and the training of ours in `autoencoder_training.py`.

Encoding an image is a function of that image alone, so the privacy unit stays the image, and the weights
have to be public.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.images.checkpoint import read_checkpoint


class Autoencoder(nn.Module, ABC):
    """Images (B, C, S, S) in [−1, 1] to latents (B, c, s, s) of about unit variance, and back.

    No image may depend on another, in either direction.

    Attributes:
        num_channels: c.
        in_checkpoints: whether the weights are small enough to be part of every checkpoint.
    """

    num_channels: int
    in_checkpoints: bool = True

    @abstractmethod
    def latent_size(self, size: int) -> int:
        """s for images of side S."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """The mean latents: nothing is drawn."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images, about within [−1, 1]."""


class Pixels(Autoencoder):
    """The identity: diffusion of the pixels themselves.

    Args:
        num_channels: 1 for grey images, 3 for colour.
    """

    def __init__(self, *, num_channels: int = 1) -> None:
        super().__init__()
        self.num_channels = num_channels

    def latent_size(self, size: int) -> int:
        return size

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class SmallAutoencoder(Autoencoder):
    """A convolutional KL autoencoder for small images (Kingma & Welling 2013; Rombach et al. 2022, §3.1).

    Args:
        image_channels: C.
        image_size: S.
        num_channels: c.
        latent_size: s; images are padded to s · 2^levels, at least S, where they don't fit.
        widths: of each level from fine to coarse; each halves the side.
        weights: a checkpoint of `AutoencoderTraining` with the same settings, or None to start at random, or
            from what `WeightsOrigin` loads. They are public: that training takes no other data.
    """

    def __init__(
        self,
        *,
        image_channels: int = 1,
        image_size: int = 28,
        num_channels: int = 4,
        latent_size: int = 8,
        widths: Sequence[int] = (32, 64),
        weights: str | None = None,
    ) -> None:
        super().__init__()
        padded = latent_size * 2 ** len(widths)
        if padded < image_size:
            raise ValueError(
                f"SmallAutoencoder.latent_size is {latent_size} and {len(widths)} widths halve {len(widths)} "
                f"times, which holds images of {padded} pixels at most, not {image_size}: take a larger one."
            )
        self.num_channels = num_channels
        self.image_size = image_size
        self._latent_size = latent_size
        before = (padded - image_size) // 2
        self._padding = (before, padded - image_size - before) * 2
        down: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], 3, padding=1)]
        for width, wider in zip(widths, [*widths[1:], widths[-1]], strict=True):
            down += [_Residual(width), nn.Conv2d(width, wider, 4, stride=2, padding=1)]
        self.encoder = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(widths[-1], 2 * num_channels, 3, padding=1))
        up: list[nn.Module] = [nn.Conv2d(num_channels, widths[-1], 3, padding=1)]
        for width, finer in zip(reversed(widths), [*reversed(widths[:-1]), widths[0]], strict=True):
            up += [_Residual(width), nn.Upsample(scale_factor=2), nn.Conv2d(width, finer, 3, padding=1)]
        self.decoder = nn.Sequential(*up, nn.SiLU(), nn.Conv2d(widths[0], image_channels, 3, padding=1))
        # Of the latents of public images, measured while training. Parameters, not buffers: they are part of
        # the weights that a later stage starts from.
        self.latent_mean = nn.Parameter(torch.zeros(num_channels, 1, 1), requires_grad=False)
        self.latent_std = nn.Parameter(torch.ones(num_channels, 1, 1), requires_grad=False)
        if weights is not None:
            self._load(weights)

    def latent_size(self, size: int) -> int:
        if size != self.image_size:
            raise ValueError(
                f"SmallAutoencoder.image_size is {self.image_size}, but the images have a side of {size} "
                "pixels: give both the same."
            )
        return self._latent_size

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, each (B, c, s, s), before standardising."""
        padded = F.pad(images, self._padding, mode="replicate")  # (B, C, s·2^levels, s·2^levels)
        mean, log_variance = self.encoder(padded).chunk(2, dim=1)  # (B, c, s, s) each
        return mean, log_variance.clamp(-20.0, 10.0)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Images from latents that were not standardised."""
        images = self.decoder(latents)  # (B, C, s·2^levels, s·2^levels)
        left, _, top, _ = self._padding
        return images[..., top : top + self.image_size, left : left + self.image_size]

    def encode(self, images: Tensor) -> Tensor:
        return (self.moments(images)[0] - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_raw(latents * self.latent_std + self.latent_mean)

    def _load(self, path: str) -> None:
        prefix = "autoencoder."
        checkpoint = read_checkpoint(path)
        state = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"SmallAutoencoder.weights={path} holds an autoencoder of other settings ({_first(error)}): "
                "give it the image_channels, image_size, num_channels, latent_size and widths of its own run."
            ) from error


class _Residual(nn.Module):
    """Two convolutions beside the identity; no norm, so that single pixels keep their level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # (B, width, h, w)


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1 if len(lines) > 1 else 0][:160]
