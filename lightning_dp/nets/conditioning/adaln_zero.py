"""AdaLN-Zero as in DiT: nothing is bounded."""

from torch import nn

from lightning_dp.nets.conditioning.modulation import Conditioning, Modulation


class AdaLNZero(Conditioning):
    """y = x + α ⊙ F((1 + γ) ⊙ LN(x) + β) with (γ, β, α) = W·SiLU(c) + b (DiT, arXiv 2212.09748, §3.2)."""

    def build(self, hidden_size: int, *, condition_size: int, sublayers: int, gated: bool) -> nn.Module:
        return Modulation(
            hidden_size,
            condition_size=condition_size,
            sublayers=sublayers,
            gated=gated,
            project=nn.Identity(),
            scale_bound=nn.Identity(),
            shift_bound=nn.Identity(),
            gate_bound=nn.Identity(),
        )
