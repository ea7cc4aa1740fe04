"""What a time-series network has to offer, whatever it is made of."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class DenoisingNet(nn.Module, ABC):
    """Predicts a diffusion target for windows of B rows, L steps, C channels and F covariates.

    No row may depend on another, and rows that the layers see for one row of the input are consecutive:
    clipping per example rests on both.

    Attributes:
        rows_per_example: how many rows the layers see for one row of the input.
    """

    rows_per_example: int = 1

    @abstractmethod
    def encode(
        self, *, context: Tensor, visible: Tensor, target: Tensor, profile: Tensor, covariates: Tensor
    ) -> Any:
        """Whatever depends neither on x_t nor on t: once per window while sampling.

        Args:
            context: (B, L, C) normalised values, 0 where not visible.
            visible: (B, L, C) 1 where `context` holds a value, else 0.
            target: (B, L, C) bool, True where the output is needed; elsewhere it may be anything.
            profile: (B, L, C) normalised baseline that was taken off the values.
            covariates: (B, L, F).
        """

    @abstractmethod
    def denoise(self, noisy: Tensor, timesteps: Tensor, *, known: Any) -> Tensor:
        """The diffusion target (noise, velocity or sample, whichever it is trained for).

        Args:
            noisy: (B·n, L, C) x_t, n ≥ 1 consecutive rows for each of the B windows in `known`.
            timesteps: (B·n,) in [0, num_steps), or (1,) where all rows are at the same time.
            known: from `encode`.

        Returns:
            (B·n, L, C).
        """

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        *,
        context: Tensor,
        visible: Tensor,
        target: Tensor,
        profile: Tensor,
        covariates: Tensor,
    ) -> Tensor:
        """Both halves at once, as in training: (B, L, C) from (B, L, C)."""
        known = self.encode(
            context=context, visible=visible, target=target, profile=profile, covariates=covariates
        )
        return self.denoise(noisy, timesteps, known=known)
