"""Operators that keep every coordinate of a modulation within [−M, M].

All satisfy B(0) = 0, B′(0) = 1 and 0 ≤ B′ ≤ 1, so a zero-initialised modulation behaves as if unbounded and a
bound never enlarges a gradient. Scope: coordinates; the projection of a whole condition vector is in
`modulation.py`.
"""

import math

import torch
from torch import Tensor, nn


class Bound(nn.Module):
    """A coordinate-wise map into [−limit, limit].

    Args:
        limit: M > 0.

    Raises:
        ValueError: `limit` is not a positive finite number.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        if not 0 < limit < float("inf"):
            raise ValueError(
                f"limit is {limit}, but a bound has to be positive and finite; for no bound use null."
            )
        self.limit = float(limit)

    def forward(self, x: Tensor) -> Tensor:
        """Bound every coordinate of `x`, of any shape."""
        raise NotImplementedError

    def inverse(self, value: float) -> float:
        """The x of least size with B(x) = `value`, at which B still has a slope.

        Raises:
            ValueError: `value` is not inside (−limit, limit).
        """
        if not abs(value) < self.limit:
            raise ValueError(
                f"limit is {self.limit}, which a start at {value} has to lie below: at the limit itself "
                "nothing is left to learn from."
            )
        return self._inverse(value)

    def _inverse(self, value: float) -> float:
        return value

    def extra_repr(self) -> str:
        return f"limit={self.limit}"


class Tanh(Bound):
    """B(x) = M·tanh(x / M); arXiv 2602.22610's default."""

    def forward(self, x: Tensor) -> Tensor:
        return self.limit * torch.tanh(x / self.limit)

    def _inverse(self, value: float) -> float:
        return self.limit * math.atanh(value / self.limit)


class SoftClampBand(Bound):
    """The identity up to M − ε, then a parabola that reaches M with slope 0 at M + ε.

    Args:
        limit: M > 0.
        band: ε as a share of M, in (0, 1].
    """

    def __init__(self, limit: float, *, band: float = 0.1) -> None:
        super().__init__(limit)
        if not 0 < band <= 1:
            raise ValueError(
                f"band is {band}, but it is a share of the limit and lies in (0, 1]; 0.1 is usual."
            )
        self.band = float(band)

    def forward(self, x: Tensor) -> Tensor:
        half_width = self.band * self.limit
        # How far into the band, from 0 at M − ε to 2ε at M + ε, where the parabola has its vertex.
        depth = (x.abs() - (self.limit - half_width)).clamp(0.0, 2 * half_width)
        edge = self.limit + half_width
        bounded = x.clamp(-edge, edge) - x.sign() * depth.square() / (4 * half_width)
        # Rounding can leave the vertex an ulp above M.
        return bounded.clamp(-self.limit, self.limit)

    def _inverse(self, value: float) -> float:
        half_width = self.band * self.limit
        into = abs(value) - (self.limit - half_width)  # how far into the band B(x) is
        if into <= 0:
            return value
        # The smaller root of depth − depth² / (4ε) = into.
        depth = 2 * half_width * (1 - math.sqrt(1 - into / half_width))
        return math.copysign(self.limit - half_width + depth, value)


class HardClamp(Bound):
    """B(x) = clip(x, −M, M): no gradient once a coordinate is out of range."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-self.limit, self.limit)


class ClampSTE(Bound):
    """Clips in the forward pass and passes gradients straight through, B′ = 1 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        clipped = x.clamp(-self.limit, self.limit)
        # Exact in the forward pass, unlike x + (clipped − x).detach(), which can round to beyond M.
        return _StraightThrough.apply(x, clipped)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, replacement: Tensor) -> Tensor:
        return replacement.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        return grad_output, None

    # Lets torch.func.vmap(grad) run over it.
    generate_vmap_rule = True
