"""Votes: robust to how large gradients are."""

import math
from typing import final

import torch
from torch import Tensor

from lightning_dp.adapters.scores.score import PrivateScore


@final
class Vote(PrivateScore):
    """Units that have a matrix among the k of their largest gradient norms.

    A ballot is k ones, so the sensitivity is √k; a unit without a gradient abstains.

    Args:
        votes: k ≥ 1 on each ballot; None is as many as are chosen.
    """

    def __init__(self, *, votes: int | None = None) -> None:
        if votes is not None and votes < 1:
            raise ValueError(f"Vote.votes is {votes}, but each unit has at least one; null is as many as win")
        self.votes = votes

    def contributions(self, norms: Tensor, *, number: int) -> Tensor:
        largest = norms.topk(self._on_ballot(number, of=norms.shape[1]), dim=1).indices  # (U, k)
        ballots = torch.zeros_like(norms).scatter_(1, largest, 1.0)  # (U, M)
        return ballots * (norms > 0)

    def sensitivity(self, *, number: int) -> float:
        return math.sqrt(self.votes or number)

    def largest(self, *, number: int) -> float:
        return 1.0

    def _on_ballot(self, number: int, *, of: int) -> int:
        return min(self.votes or number, of)
