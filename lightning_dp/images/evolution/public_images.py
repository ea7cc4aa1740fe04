"""A public set of images as the simulator (the data-based one of arXiv 2502.05505)."""

from typing import Any, final

import numpy as np
import torch

from lightning_dp.evolution.api import SampleAPI
from lightning_dp.evolution.embedding import Embedding
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.evolution.pixel_embedding import PixelEmbedding

_SAMPLES_AT_ONCE = 1024


@final
class PublicImages(SampleAPI):
    """Random public images; varied towards public images that are near, then a little moved and lightened.

    Public labels are not used: which images look like a class is what the private votes tell.

    Args:
        data: an `ImageData` of a public source, of the private images' size and mode.
        embedding: where nearness is measured; None for `PixelEmbedding()`.
        neighbours: ≥ 1, of how many nearest public images one is drawn at degree 1.
        blend: in [0, 1], how far at most a variation moves to that image at degree 1; 1 may end at the image
            itself, 0 uses no neighbours.
        shift: ≥ 0 pixels, how far a variation is moved at most at degree 1; the edge is repeated.
        gain: in [0, 1), by which share it is lightened or darkened at most at degree 1.
        flip: whether a variation may be a mirror image.

    Raises:
        ValueError: a value out of range, or images that nobody says are public.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        embedding: Embedding | None = None,
        neighbours: int = 50,
        blend: float = 0.5,
        shift: int = 1,
        gain: float = 0.2,
        flip: bool = False,
    ) -> None:
        if not data.public:
            raise ValueError(
                f"PublicImages.data is {data.dataset_id}, which nobody says is public: choose a public "
                "source, or set its data.public to true on your word."
            )
        for field, value, low, high in (
            ("neighbours", neighbours, 1, float("inf")),
            ("blend", blend, 0, 1),
            ("shift", shift, 0, data.size // 2),
            ("gain", gain, 0, 0.99),
        ):
            if not low <= value <= high:
                raise ValueError(f"PublicImages.{field} is {value}; it must lie in [{low}, {high}].")
        self._data = data
        self._embedding = embedding or PixelEmbedding()
        self._neighbours, self._blend = neighbours, blend
        self._shift, self._gain, self._flip = shift, gain, flip
        self._opened: tuple[np.ndarray, torch.Tensor] | None = None

    def random(self, labels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        """Public images, each at most once while there are enough."""
        images, _ = self._public()
        order = np.concatenate([rng.permutation(len(images)) for _ in range(-(-len(labels) // len(images)))])
        return images[order[: len(labels)]]

    def vary(
        self, samples: np.ndarray, labels: np.ndarray, *, degree: float, rng: np.random.Generator
    ) -> np.ndarray:
        varied = samples.astype(np.float32)
        if self._blend * degree > 0:
            # Uniform up to the largest share: of several children some stay near.
            share = rng.uniform(0, self._blend * degree, (len(samples), 1, 1, 1)).astype(np.float32)
            varied += share * (self._near(samples, degree=degree, rng=rng) - varied)
        gain = 1 + rng.uniform(-1, 1, (len(samples), 1, 1, 1)) * self._gain * degree
        varied = (varied * gain).clip(0, 255).round().astype(np.uint8)
        if self._flip:
            mirrored = rng.random(len(samples)) < 0.5
            varied[mirrored] = varied[mirrored, ..., ::-1]
        reach = round(self._shift * degree)
        return _moved(varied, reach=reach, rng=rng) if reach else varied

    def facts(self) -> dict[str, str | float | int]:
        return {"api": "PublicImages", "public_data": self._data.dataset_id, "blend": self._blend}

    def _near(self, samples: np.ndarray, *, degree: float, rng: np.random.Generator) -> np.ndarray:
        """For each sample one of its nearest public images."""
        images, embedded = self._public()
        count = min(max(1, round(self._neighbours * degree)), len(images))
        chosen = []
        for part in self._embedding.embed(samples).split(_SAMPLES_AT_ONCE):
            distance = torch.cdist(part, embedded)  # (b, P)
            nearest = distance.topk(count, largest=False).indices.numpy()  # (b, count)
            chosen.append(nearest[np.arange(len(part)), rng.integers(count, size=len(part))])
        return images[np.concatenate(chosen)]

    def _public(self) -> tuple[np.ndarray, torch.Tensor]:
        """(P, C, S, S) and their embedding, read once."""
        if self._opened is None:
            pixels = self._data.train_dataset.pixels
            images = pixels.get(np.arange(len(pixels)))
            self._opened = (images, self._embedding.embed(images))
        return self._opened


def _moved(images: np.ndarray, *, reach: int, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to `reach` pixels down and right, or up and left."""
    size = images.shape[-1]
    padded = np.pad(images, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    starts: Any = rng.integers(2 * reach + 1, size=(2, len(images)))
    moved = np.empty_like(images)
    for number, (top, left) in enumerate(starts.T):
        moved[number] = padded[number, :, top : top + size, left : left + size]
    return moved
