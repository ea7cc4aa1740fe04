"""Noise schedules: x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε for t = 0 … num_steps − 1.

The β's come from diffusers, so that training and its samplers can't disagree.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn


class NoiseSchedule(nn.Module):
    """β's as buffers that follow the module's device, and their α and σ.

    Args:
        betas: (num_steps,) in (0, 1].
    """

    betas: Tensor
    alphas_cumprod: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        if betas.ndim != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(
                f"betas of shape {tuple(betas.shape)} must be one dimension of values in (0, 1]: "
                "check the schedule."
            )
        # Known from the configuration alone, so not part of a checkpoint.
        self.register_buffer("betas", betas.float(), persistent=False)
        alphas_cumprod = torch.cumprod(1 - betas.double(), dim=0).float()
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    def alpha_sigma(self, timesteps: Tensor, *, ndim: int) -> tuple[Tensor, Tensor]:
        """α_t = √ᾱ_t and σ_t = √(1−ᾱ_t) of timesteps (B,), shaped (B, 1, …) to `ndim` dimensions.

        Timesteps in [0, num_steps − 1] may be floats, as those of Heun's and of Karras' samplers are; between
        two whole ones log(σ/α) is linear, as in diffusers' conversion of noise levels to timesteps.
        """
        alphas_cumprod = (
            self._between(timesteps) if timesteps.is_floating_point() else self.alphas_cumprod[timesteps]
        )
        alphas_cumprod = alphas_cumprod.reshape(-1, *[1] * (ndim - 1))
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()

    def _between(self, timesteps: Tensor) -> Tensor:
        """ᾱ (B,) of timesteps that need not be whole."""
        below = timesteps.floor().long().clamp(0, self.num_steps - 1)
        above = (below + 1).clamp(max=self.num_steps - 1)
        share = timesteps.to(self.alphas_cumprod.dtype) - below
        low, high = (self.alphas_cumprod[whole] for whole in (below, above))
        between = torch.sigmoid(torch.lerp(torch.logit(low), torch.logit(high), share))
        return torch.where(share == 0, low, between)  # whole ones exactly as their integers


class Linear(NoiseSchedule):
    """β from `beta_start` to `beta_end` in equal steps (DDPM, arXiv 2006.11239)."""

    def __init__(self, *, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        if not 0 < beta_start <= beta_end <= 1:
            raise ValueError(
                f"beta_start is {beta_start} and beta_end {beta_end}, but 0 < start ≤ end ≤ 1 must hold: "
                "1e-4 and 0.02 are usual for 1000 steps."
            )
        scheduler: Any = DDPMScheduler(
            num_steps, beta_start=beta_start, beta_end=beta_end, beta_schedule="linear"
        )
        super().__init__(scheduler.betas)


class Cosine(NoiseSchedule):
    """ᾱ_t ∝ cos², β at most 0.999 (Nichol & Dhariwal, arXiv 2102.09672, eq. 17)."""

    def __init__(self, *, num_steps: int = 1000) -> None:
        scheduler: Any = DDPMScheduler(num_steps, beta_schedule="squaredcos_cap_v2")
        super().__init__(scheduler.betas)


class ScaledLinear(NoiseSchedule):
    """√β from √`beta_start` to √`beta_end` in equal steps (latent diffusion, arXiv 2112.10752).

    Its code calls this "linear". DP-LDM takes it up to .0155 for MNIST and CIFAR-10 and to .0195 for faces;
    Stable Diffusion from .00085 to .012.
    """

    def __init__(
        self, *, num_steps: int = 1000, beta_start: float = 0.0015, beta_end: float = 0.0195
    ) -> None:
        if not 0 < beta_start <= beta_end <= 1:
            raise ValueError(
                f"ScaledLinear.beta_start is {beta_start} and beta_end {beta_end}, but 0 < start ≤ end ≤ 1 "
                "must hold: .0015 and .0195 are usual for 1000 steps."
            )
        scheduler: Any = DDPMScheduler(
            num_steps, beta_start=beta_start, beta_end=beta_end, beta_schedule="scaled_linear"
        )
        super().__init__(scheduler.betas)
