"""Squared gradient norms, as DP-SAPF sums them (arXiv 2605.30312)."""

from typing import final

from torch import Tensor

from lightning_dp.adapters.scores.grad_norm import check_max_norm
from lightning_dp.adapters.scores.score import PrivateScore, clipped_rows


@final
class Squared(PrivateScore):
    """Σ over units of the squared norm of each matrix's part in the unit's clipped gradient.

    The squares are ≥ 0 and add up to at most C², so that is the sensitivity, in ℓ1 and so in ℓ2. Large
    parts of a gradient count for more than in `GradNorm`.

    Args:
        max_norm: C > 0, in the gradient's unit; as for `GradNorm`.
    """

    def __init__(self, *, max_norm: float = 0.01) -> None:
        check_max_norm(type(self).__name__, max_norm)
        self.max_norm = max_norm

    def contributions(self, norms: Tensor, *, number: int) -> Tensor:
        return clipped_rows(norms, max_norm=self.max_norm).square()

    def sensitivity(self, *, number: int) -> float:
        return self.max_norm**2
