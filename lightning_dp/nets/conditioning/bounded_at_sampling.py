"""The control for DP-aware AdaLN-Zero: its bounds where the model is sampled, none in training."""

from torch import Tensor, nn

from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.conditioning.modulation import Conditioning, Modulation


class BoundedAtSampling(Conditioning):
    """Trains as `AdaLNZero` does, output and gradients alike, and is bounded in evaluation mode.

    What it gains over `AdaLNZero` comes from tamer samples; what `bounded` gains over it comes from training.

    Args:
        bounded: the bounds that validation, test and sampling use.

    Raises:
        ValueError: `bounded` is literal.
    """

    def __init__(self, bounded: DPAwareAdaLNZero) -> None:
        if bounded.literal:
            raise ValueError(
                "bounded.literal is true, but what trains here is AdaLNZero, which scales by 1 + γ: "
                "take literal: false."
            )
        self.bounded = bounded

    def build(self, hidden_size: int, *, condition_size: int, sublayers: int, gated: bool) -> nn.Module:
        module = self.bounded.build(
            hidden_size, condition_size=condition_size, sublayers=sublayers, gated=gated
        )
        assert isinstance(module, Modulation)
        module.project = _InEvaluation(module.project)
        module.scale_bound = _InEvaluation(module.scale_bound)
        module.shift_bound = _InEvaluation(module.shift_bound)
        module.gate_bound = _InEvaluation(module.gate_bound)
        return module


class _InEvaluation(nn.Module):
    def __init__(self, bound: nn.Module) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else self.bound(x)
