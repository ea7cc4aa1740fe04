"""From a condition to the scale, shift and gate of the layers it steers.

A `Conditioning` is chosen by class_path in a model's YAML; it is a recipe without weights, and a network
asks it for one `Modulation` module per block and one for the final layer. Every recipe builds the same
module with the same parameter names, so weights trained under one recipe load under another.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_dp.nets.conditioning.bounds import Bound


class Steering(NamedTuple):
    """What one sublayer F gets: y = x + gate ⊙ F(scale ⊙ LN(x) + shift).

    Each is (B, 1, D); gate is None where the sublayer has none.
    """

    scale: Tensor
    shift: Tensor
    gate: Tensor | None


class Conditioning(ABC):
    """Builds the modulation modules of one network."""

    @abstractmethod
    def build(self, hidden_size: int, *, condition_size: int, sublayers: int, gated: bool) -> nn.Module:
        """A new module that maps a condition (B, condition_size) to `sublayers` × `Steering`.

        Args:
            hidden_size: D, width of the layers that are steered.
            condition_size: width of the condition vector.
            sublayers: how many sublayers the module steers (2 for attention and feed-forward, 1 for a final
                layer).
            gated: whether each sublayer has a gate (the final layer has none).
        """


class ConditionProjection(nn.Module):
    """ĉ = c · min(1, c_max / ‖c‖₂), row by row: the identity, exactly, inside the ball.

    Args:
        max_norm: c_max > 0.
    """

    def __init__(self, max_norm: float) -> None:
        super().__init__()
        if not 0 < max_norm < float("inf"):
            raise ValueError(
                f"c_max is {max_norm}, but it has to be positive and finite; for no bound use null."
            )
        self.max_norm = float(max_norm)

    def forward(self, c: Tensor) -> Tensor:
        # fp32 at least, whatever autocast chose: a half-precision norm of a wide vector overflows.
        wide = c.to(torch.promote_types(c.dtype, torch.float32))  # (B, condition_size)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (B, 1)
        # Exactly 1, and no gradient through the norm, wherever ‖c‖ ≤ c_max; no 0/0 at c = 0.
        projected = wide * (self.max_norm / norm.clamp_min(self.max_norm))  # (B, condition_size)
        # In half precision the last rounding can leave ‖ĉ‖ above c_max by that precision's relative error.
        return projected.to(c.dtype)

    def extra_repr(self) -> str:
        return f"max_norm={self.max_norm}"


class Modulation(nn.Module):
    """(γ, β, α)_raw = W·project(SiLU(c)) + b, each bounded on its own, for every sublayer.

    W and b start at zero, so that a fresh block is the identity (DiT, arXiv 2212.09748, §3.2).

    Args:
        hidden_size: D.
        condition_size: width of the condition.
        sublayers: number of `Steering` returned.
        gated: whether there is an α.
        project: applied to the vector that enters W.
        scale_bound: B_γ.
        shift_bound: B_β.
        gate_bound: B_α.
        literal: scale by γ alone (the paper's formula) rather than by 1 + γ. γ then starts at 1, for with
            γ = 0 and α = 0 nothing would ever get a gradient: the bias is what B_γ maps there.

    Raises:
        ValueError: `literal`, and B_γ doesn't reach beyond 1.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        condition_size: int,
        sublayers: int,
        gated: bool,
        project: nn.Module,
        scale_bound: nn.Module,
        shift_bound: nn.Module,
        gate_bound: nn.Module,
        literal: bool = False,
    ) -> None:
        super().__init__()
        self.sublayers = sublayers
        self.gated = gated
        self.literal = literal
        self.activation = nn.SiLU()
        self.project = project
        self.linear = nn.Linear(condition_size, (3 if gated else 2) * sublayers * hidden_size)
        self.scale_bound = scale_bound
        self.shift_bound = shift_bound
        self.gate_bound = gate_bound
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if literal:
            with torch.no_grad():
                # (sublayer, kind, D) with kind 0 = γ, as in `forward`.
                start = scale_bound.inverse(1.0) if isinstance(scale_bound, Bound) else 1.0
                self.linear.bias.view(sublayers, -1, hidden_size)[:, 0] = start

    def forward(self, condition: Tensor) -> list[Steering]:
        raw = self.linear(self.project(self.activation(condition)))  # (B, sublayers · kinds · D)
        kinds = raw.unflatten(-1, (self.sublayers, 3 if self.gated else 2, 1, -1))  # (B, S, kinds, 1, D)
        steering = []
        for sublayer in range(self.sublayers):
            scale = self.scale_bound(kinds[:, sublayer, 0])  # (B, 1, D)
            shift = self.shift_bound(kinds[:, sublayer, 1])  # (B, 1, D)
            gate = self.gate_bound(kinds[:, sublayer, 2]) if self.gated else None  # (B, 1, D)
            steering.append(Steering(scale if self.literal else 1 + scale, shift, gate))
        return steering

    def modulation_modules(self) -> list[nn.Module]:
        """What a modulation-only adapter trains."""
        return [self]


def optional_bound(bound_fn: Callable[[float], nn.Module], limit: float | None) -> nn.Module:
    """`bound_fn(limit)`, or the identity where the limit is None."""
    return nn.Identity() if limit is None else bound_fn(limit)
