"""What a network for images or their latents has to offer, whatever it is made of."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_dp.nets.tokenizers import Tokenizer


class ImageNet(nn.Module, ABC):
    """Predicts a diffusion target for (B, C, S, S), given a class or nothing.

    No row may depend on another, and rows that the layers see for one row of the input are consecutive:
    clipping per example rests on both.

    Args:
        in_channels: C ≥ 1 of the images, or of their latents.
        size: S ≥ 1, their side.
        num_classes: ≥ 0 classes; 0 for a model without labels.
    """

    rows_per_example: int = 1

    def __init__(self, *, in_channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        for field, value, least in (
            ("in_channels", in_channels, 1),
            ("size", size, 1),
            ("num_classes", num_classes, 0),
        ):
            if value < least:
                raise ValueError(f"{type(self).__name__}.{field} is {value}; it must be at least {least}.")
        self.in_channels = in_channels
        self.size = size
        self.num_classes = num_classes

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Of the captions that it reads as `tokens` (B, L); None for a net that reads none as such."""
        return None

    @abstractmethod
    def forward(self, noisy: Tensor, timesteps: Tensor, *, labels: Tensor) -> Tensor:
        """The diffusion target (noise, velocity or sample, whichever it is trained for).

        Args:
            noisy: (B, C, S, S) x_t.
            timesteps: (B,) in [0, num_steps).
            labels: (B,) int64 in [0, num_classes); −1 where the class is unknown, or to be ignored.

        Returns:
            (B, C, S, S).
        """


def class_rows(labels: Tensor, *, num_classes: int) -> Tensor:
    """Rows of an embedding of num_classes + 1 classes, the last of which stands for "no class": (B,)."""
    return torch.where(labels < 0, num_classes, labels)
