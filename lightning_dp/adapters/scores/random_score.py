"""Chance: what any way of choosing has to beat."""

from typing import final

import torch
from torch import Tensor

from lightning_dp.adapters.scores.score import FreeScore, NormsFn


@final
class RandomScore(FreeScore):
    """Uniform numbers from torch's global generator, so that each seed of a study chooses anew."""

    def scores(self, *, matrices: int, number: int, norms: NormsFn) -> Tensor:
        return torch.rand(matrices)
