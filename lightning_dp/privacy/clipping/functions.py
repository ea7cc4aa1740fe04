"""Clipping functions: unit norms in, factors out.

Every function keeps the whole contribution of one unit at ℓ2 norm ≤ max_grad_norm, so the
sensitivity under add/remove adjacency is max_grad_norm for all of them and noise of standard
deviation noise_multiplier · max_grad_norm is right whichever is chosen.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class ClippingFunction(ABC):
    """Maps the norms of one unit's gradient, per group of parameters, to factors in [0, ∞)."""

    @abstractmethod
    def partition(self, names: Sequence[str]) -> list[int]:
        """The group of each named parameter, as integers 0 … G−1 with none left out."""

    @abstractmethod
    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        """Factors for each unit and group.

        Args:
            norms: (U, G) fp32, finite, ≥ 0.
            max_grad_norm: C > 0.

        Returns:
            (U, G) fp32 with Σ_g (factor · norm)² ≤ C² for every unit.
        """


class Flat(ClippingFunction):
    """One norm over all parameters: g · min(1, C / ‖g‖). Abadi et al. 2016, arXiv 1607.00133, Alg. 1."""

    def partition(self, names: Sequence[str]) -> list[int]:
        return [0] * len(names)

    def factors(self, norms: Tensor, *, max_grad_norm: float) -> Tensor:
        return torch.clamp(max_grad_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny), max=1.0)
