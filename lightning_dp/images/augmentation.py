"""Variants of one image that belong to the same privacy unit (De et al., arXiv 2204.13650, §3.2).

Variants are numbered rather than drawn, so that the latents of all of them can be cached; each noise draw of
an image picks one.
"""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor


class Augmentation(ABC):
    """A fixed set of variants of every image; number 0 is the image itself.

    Attributes:
        num_variants: V ≥ 1.
    """

    num_variants: int

    @abstractmethod
    def apply(self, images: Tensor, *, variant: int) -> Tensor:
        """(B, C, H, W) → the same shape, image by image.

        Args:
            images: in [−1, 1].
            variant: in [0, num_variants).
        """


class Flip(Augmentation):
    """The image and its mirror image."""

    num_variants = 2

    def apply(self, images: Tensor, *, variant: int) -> Tensor:
        return images.flip(-1) if variant else images


class Shift(Augmentation):
    """The image, moved by −pixels, 0 or pixels in both directions; the edge is repeated.

    Args:
        pixels: ≥ 1.
        flip: also the mirror image of each.
    """

    def __init__(self, *, pixels: int = 1, flip: bool = False) -> None:
        if pixels < 1:
            raise ValueError(f"Shift.pixels is {pixels}; it must be at least 1.")
        self.pixels = pixels
        moves = (0, -pixels, pixels)
        self._moves = [(down, right) for down in moves for right in moves]
        self.num_variants = len(self._moves) * (2 if flip else 1)

    def apply(self, images: Tensor, *, variant: int) -> Tensor:
        down, right = self._moves[variant % len(self._moves)]
        if variant >= len(self._moves):
            images = images.flip(-1)
        p, (height, width) = self.pixels, images.shape[-2:]
        padded = F.pad(images, (p, p, p, p), mode="replicate")
        return padded[..., p - down : p - down + height, p - right : p - right + width]
