"""Gradient norms, clipped together."""

from typing import final

from torch import Tensor

from lightning_dp.adapters.scores.score import PrivateScore, clipped_rows


@final
class GradNorm(PrivateScore):
    """Σ over units of the norm of each matrix's part in the unit's clipped gradient.

    Clipped is the gradient of all candidates together, to C. The vector of its parts' norms is as long as
    it is, so the sensitivity is C.

    Args:
        max_norm: C > 0, in the gradient's unit. Below the usual norm all units count the same and the noise
            shrinks with C as they do, so that a small one is safe; above it noise outweighs them.
    """

    def __init__(self, *, max_norm: float = 0.01) -> None:
        check_max_norm(type(self).__name__, max_norm)
        self.max_norm = max_norm

    def contributions(self, norms: Tensor, *, number: int) -> Tensor:
        return clipped_rows(norms, max_norm=self.max_norm)

    def sensitivity(self, *, number: int) -> float:
        return self.max_norm


def check_max_norm(score: str, max_norm: float) -> None:
    """Raise ValueError unless it is positive and finite."""
    if not 0 < max_norm < float("inf"):
        raise ValueError(f"{score}.max_norm is {max_norm}, but it must be a number above 0: 0.01 is usual")
