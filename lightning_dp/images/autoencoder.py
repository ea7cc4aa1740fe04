"""Autoencoders between images and the space in which they are diffused; frozen in every diffusion stage.

Scope: the interfaces, pixels as they are, and a small one of our own. Those of latent diffusion are in
`latent_autoencoder.py`, their training is in `autoencoder_training.py`, and the result of such a training is
read by `saved_autoencoder.py`; checkpoints of others by `diffusers_autoencoder.py`.

Encoding an image is a function of that image alone, so the privacy unit stays the image, and the weights
have to be public.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

    def settings(self) -> dict[str, Any] | None:
        """What a checkpoint has to know to make it again, where its configuration alone does not say."""
        return None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What training compares.

    Attributes:
        images: (B, C, S, S), decoded.
        latents: (B, c, s, s), before they are standardised; nothing was drawn.
        penalty: of the latents, a scalar in units of an error per value of a pixel.
    """

    images: Tensor
    latents: Tensor
    penalty: Tensor


class TrainableAutoencoder(Autoencoder):
    """An autoencoder that `AutoencoderTraining` trains, on images of one size.

    Args:
        image_size: S.
        num_channels: c.

    Attributes:
        latent_mean: (c, 1, 1), of the latents of public images, measured while training. Parameters, not
            buffers: they are part of the weights that a later stage starts from.
        latent_std: (c, 1, 1).
    """

    def __init__(self, *, image_size: int, num_channels: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.num_channels = num_channels
        self.latent_mean = nn.Parameter(torch.zeros(num_channels, 1, 1), requires_grad=False)
        self.latent_std = nn.Parameter(torch.ones(num_channels, 1, 1), requires_grad=False)

    @abstractmethod
    def raw_latents(self, images: Tensor) -> Tensor:
        """(B, c, s, s), before they are standardised; nothing is drawn."""

    @abstractmethod
    def decode_raw(self, latents: Tensor) -> Tensor:
        """Images from latents that were not standardised."""

    @abstractmethod
    def reconstruct(self, images: Tensor) -> Reconstruction:
        """As in training, with what is drawn."""

    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weights, by which the parts of a loss are weighed."""

    def encode(self, images: Tensor) -> Tensor:
        return (self.raw_latents(images) - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_raw(latents * self.latent_std + self.latent_mean)

    @torch.no_grad()
    def note(self, latents: Tensor, *, rate: float) -> None:
        """Move mean and deviation of each channel towards those of a batch of raw latents."""
        dims = (0, 2, 3)
        self.latent_mean.lerp_(latents.mean(dim=dims)[:, None, None].to(self.latent_mean), rate)
        self.latent_std.lerp_(latents.std(dim=dims)[:, None, None].clamp_min(1e-4).to(self.latent_std), rate)

    def load(self, path: str) -> None:
        """Weights of a checkpoint of `AutoencoderTraining`.

        Raises:
            ValueError: it is missing, damaged, or of other settings.
        """
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
                f"{type(self).__name__}.weights={path} holds an autoencoder of other settings "
                f"({_first(error)}): give it those of its own run, or take "
                "SavedAutoencoder, which reads them."
            ) from error


def gaussian_penalty(mean: Tensor, log_variance: Tensor, *, num_values: int) -> Tensor:
    """KL(q(z|x) ‖ N(0, 1)) of an image, the mean over the batch, divided by the values of its pixels.

    Args:
        mean: (B, c, s, s).
        log_variance: (B, c, s, s).
        num_values: C·S².
    """
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return divergence.flatten(1).sum(dim=1).mean() / num_values


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


class SmallAutoencoder(TrainableAutoencoder):
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
        super().__init__(image_size=image_size, num_channels=num_channels)
        padded = latent_size * 2 ** len(widths)
        if padded < image_size:
            raise ValueError(
                f"SmallAutoencoder.latent_size is {latent_size} and {len(widths)} widths halve {len(widths)} "
                f"times, which holds images of {padded} pixels at most, not {image_size}: take a larger one."
            )
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
        if weights is not None:
            self.load(weights)

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

    def raw_latents(self, images: Tensor) -> Tensor:
        return self.moments(images)[0]

    def reconstruct(self, images: Tensor) -> Reconstruction:
        mean, log_variance = self.moments(images)  # (B, c, s, s) each
        latents = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return Reconstruction(
            images=self.decode_raw(latents),
            latents=mean,
            penalty=gaussian_penalty(mean, log_variance, num_values=images[0].numel()),
        )

    def last_layer(self) -> nn.Parameter:
        last = self.decoder[-1]
        assert isinstance(last.weight, nn.Parameter)
        return last.weight

    def decode_raw(self, latents: Tensor) -> Tensor:
        images = self.decoder(latents)  # (B, C, s·2^levels, s·2^levels)
        left, _, top, _ = self._padding
        return images[..., top : top + self.image_size, left : left + self.image_size]


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
