"""Which matrices were chosen to be trained: part of a network's state, so that it is never paid for twice."""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lightning_dp.adapters.lora import Matrix

Pieces = Literal["matrices", "layers"]
NAME = "selection"
"""The submodule of a network that holds it."""


@final
class Selection(nn.Module):
    """A score of each candidate, and those with the highest.

    Args:
        matrices: M candidates.
        ratio: share in (0, 1] of the pieces that are chosen, rounded, at least one.
        pieces: what is chosen: single matrices, or layers (all candidates of one attention, by the sum of
            their scores).
    """

    scores: Tensor
    chosen: Tensor

    def __init__(self, matrices: Sequence[Matrix], *, ratio: float, pieces: Pieces) -> None:
        super().__init__()
        self.matrices = tuple(matrices)
        single = pieces == "matrices"
        names = [matrix.name if single else matrix.layer for matrix in matrices]
        self._pieces = [list(dict.fromkeys(names)).index(name) for name in names]
        self._num_chosen = max(1, round(ratio * len(set(names))))
        self.register_buffer("scores", torch.zeros(len(names)))
        self.register_buffer("chosen", torch.zeros(len(names), dtype=torch.bool))

    @property
    def made(self) -> bool:
        """Whether anything was chosen yet."""
        return bool(self.chosen.any())

    @property
    def number(self) -> int:
        """About how many matrices are chosen: exactly where pieces are matrices or equally large layers."""
        pieces = max(self._pieces) + 1
        return max(1, round(self._num_chosen * len(self.matrices) / pieces))

    def choose(self, scores: Tensor) -> None:
        """Choose by (M,) scores; equal ones in the network's order."""
        of_piece = torch.zeros(max(self._pieces) + 1, dtype=torch.float64)
        of_piece.index_add_(0, torch.tensor(self._pieces), scores.detach().cpu().double())
        best = of_piece.argsort(descending=True, stable=True)[: self._num_chosen].tolist()
        self.scores.copy_(scores)
        self.chosen.copy_(torch.tensor([piece in best for piece in self._pieces]))

    def report(self) -> list[dict[str, Any]]:
        """Each candidate's name, layer, entries, score and whether it was chosen, JSON-ready."""
        return [
            {
                "name": matrix.name,
                "layer": matrix.layer,
                "size": matrix.size,
                "score": score,
                "chosen": chosen,
            }
            for matrix, score, chosen in zip(
                self.matrices, self.scores.tolist(), self.chosen.tolist(), strict=True
            )
        ]
