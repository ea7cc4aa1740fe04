"""Images as latents of an autoencoder that was trained on public images."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_dp.evolution.embedding import Embedding
from lightning_dp.images.autoencoder import Autoencoder
from lightning_dp.images.data.dataset import to_floats

_IMAGES_AT_ONCE = 256


@final
class AutoencoderEmbedding(Embedding):
    """Latents, flattened.

    Args:
        autoencoder: with public weights, such as `SmallAutoencoder(weights=…)`.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self._autoencoder = autoencoder.requires_grad_(False).eval()

    @torch.no_grad()
    def embed(self, samples: np.ndarray) -> Tensor:
        """(n, C, S, S) uint8 → (n, c·s²)."""
        parts = np.split(samples, range(_IMAGES_AT_ONCE, len(samples), _IMAGES_AT_ONCE))
        return torch.cat([self._autoencoder.encode(to_floats(part)).flatten(1) for part in parts])
