"""Images as latents of an autoencoder that was trained on public images."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_dp.evolution.embedding import Embedding
from lightning_dp.images.autoencoder import Autoencoder
from lightning_dp.images.data.dataset import to_floats


@final
class AutoencoderEmbedding(Embedding):
    """Latents, flattened.

    Args:
        autoencoder: with public weights, such as `SmallAutoencoder(weights=…)`.
        images_at_once: ≥ 1, for memory: a large autoencoder takes gigabytes for a few large images.

    Raises:
        ValueError: no image at once.
    """

    def __init__(self, autoencoder: Autoencoder, *, images_at_once: int = 256) -> None:
        if images_at_once < 1:
            raise ValueError(
                f"AutoencoderEmbedding.images_at_once is {images_at_once}; it must be at least 1: 256 is "
                "usual for small images, 1 to 8 for large ones."
            )
        self._images_at_once = images_at_once
        self._autoencoder = autoencoder.requires_grad_(False).eval()

    @torch.no_grad()
    def embed(self, samples: np.ndarray) -> Tensor:
        """(n, C, S, S) uint8 → (n, c·s²)."""
        parts = np.split(samples, range(self._images_at_once, len(samples), self._images_at_once))
        return torch.cat([self._autoencoder.encode(to_floats(part)).flatten(1) for part in parts])
