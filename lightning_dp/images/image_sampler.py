"""What draws images, whatever it is made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class ImageSampler(ABC):
    """A module whose samples are images of classes or captions, to be exported and judged as such."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes it knows, counted from 0; 0 for none."""

    @abstractmethod
    def sample(
        self,
        labels: Tensor,
        *,
        captions: Sequence[str] | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(n, C, S, S) in [−1, 1], one image per label (n,), −1 for no class, or per caption."""
