"""What says which matrices of a network matter: interfaces.

A score for private data is a bounded contribution of each unit, summed under noise by a paid release. A
free one looks at no private row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Denoiser(Protocol):
    """What is asked of a LightningModule, as both halves of the project have it.

    Attributes:
        noise_draws: K ≥ 1 timesteps and noises per example.
    """

    noise_draws: int

    @property
    def net(self) -> nn.Module:
        """Holds the matrices."""

    @property
    def device(self) -> torch.device:
        """Of `net`."""

    @property
    def rows_per_example(self) -> int:
        """Rows that the net's layers see for one row of the data set, `noise_draws` of them included."""

    def per_example_losses(self, batch: Any) -> Tensor:
        """(B,) losses, each a function of its own example."""

    def forward_precision(self) -> AbstractContextManager[Any]:
        """Around forwards, as the fit's precision has it; nothing outside of a fit."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning's."""


class PrivateScore(ABC):
    """Turns gradient norms of one unit into what it adds to the sum that is released."""

    @abstractmethod
    def contributions(self, norms: Tensor, *, number: int) -> Tensor:
        """What each unit adds: (U, M) ≥ 0, rows of an ℓ2 norm of at most `sensitivity`.

        Args:
            norms: (U, M) ≥ 0 and finite, the norm of each unit's gradient by matrix.
            number: matrices that will be chosen.
        """

    @abstractmethod
    def sensitivity(self, *, number: int) -> float:
        """> 0, the most that one unit moves the sum, in ℓ2."""

    def largest(self, *, number: int) -> float:
        """The most that one unit adds to any one matrix; by ℓ2 at most as much as to all."""
        return self.sensitivity(number=number)


class FreeScore(ABC):
    """Scores that cost no privacy."""

    @abstractmethod
    def scores(self, *, matrices: int, number: int, norms: "NormsFn") -> Tensor:
        """(M,) scores, computed once, at the start of a fit and in its first process.

        Args:
            matrices: M candidates.
            number: how many will be chosen.
            norms: measures gradient norms by matrix, with the weights that training starts from.
        """


class NormsFn(Protocol):
    """Gradient norms (U, M) of the units in collated batches, see `gradient_norms.py`."""

    def __call__(self, batches: Iterable[Any], *, rows_per_unit: int) -> Tensor:
        """`rows_per_unit` consecutive rows of a batch are one unit's."""


def clipped_rows(rows: Tensor, *, max_norm: float) -> Tensor:
    """Each row times min(1, max_norm / ‖row‖₂)."""
    norms = rows.norm(dim=1, keepdim=True)  # (U, 1)
    return rows * (max_norm / norms.clamp_min(max_norm))
