"""The one batch format of the image half: what a dataset yields and a module reads."""

from typing import TypedDict

from torch import Tensor


class ImageBatch(TypedDict, total=False):
    """B images, or what a frozen autoencoder made of them.

    Attributes:
        images: (B, C, H, W) float32 in [−1, 1]; absent where latents were cached.
        latents: (B, V, c, h, w) float32, one for each variant of the augmentation; absent before.
        labels: (B,) int64, −1 where the class is unknown.
        captions: B texts, as private as their images; absent where the data has none.
        tokens: (B, L) int64 of these texts, in their place where the data has a tokenizer.
    """

    images: Tensor
    latents: Tensor
    labels: Tensor
    captions: list[str]
    tokens: Tensor
