"""Diffusion-transformer blocks, for any sequence of tokens (DiT, arXiv 2212.09748, §3.2).

Scope: blocks and final layer; tokens are made from series in `series_net.py`.
"""

from torch import Tensor, nn

from lightning_dp.nets.attention import SelfAttention
from lightning_dp.nets.conditioning.modulation import Conditioning
from lightning_dp.nets.conditioning.path import ConditionPath


class FeedForward(nn.Module):
    """Two linear layers around a GELU, (B, T, D) to (B, T, D)."""

    def __init__(self, hidden_size: int, *, ratio: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, int(ratio * hidden_size))
        self.activation = nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(int(ratio * hidden_size), hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(self.activation(self.inner(x))))  # (B, T, D)


class DiTBlock(nn.Module):
    """Attention and feed-forward, each steered by the condition and gated.

    Args:
        hidden_size: D.
        num_heads: H.
        mlp_ratio: width of the feed-forward over D.
        condition_size: width of the condition.
        conditioning: how the condition steers.
        dropout: share of activations dropped on each branch.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        mlp_ratio: float,
        condition_size: int,
        conditioning: Conditioning,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # Affine-free: scale and shift come from the condition.
        self.attention_norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(hidden_size, num_heads=num_heads)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.feed_forward = FeedForward(hidden_size, ratio=mlp_ratio, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.modulation = conditioning.build(
            hidden_size, condition_size=condition_size, sublayers=2, gated=True
        )

    def transformer_modules(self) -> list[nn.Module]:
        """What an attention adapter trains as a whole."""
        return [self]

    def forward(self, x: Tensor, condition: Tensor, *, queries: Tensor | None = None) -> Tensor:
        """x: (B, T, D), condition: (B, condition_size) → (B, T, D).

        With `queries` (t,) only those tokens are returned, (B, t, D): in a network's last block the others
        serve as keys and values alone.
        """
        attention, feed_forward = self.modulation(condition)  # each of (B, 1, D)
        y = attention.scale * self.attention_norm(x) + attention.shift  # (B, T, D)
        if queries is not None:
            x = x[:, queries]  # from here on T counts these
        x = x + attention.gate * self.dropout(self.attention(y, queries=queries))  # (B, T, D)
        y = feed_forward.scale * self.feed_forward_norm(x) + feed_forward.shift  # (B, T, D)
        return x + feed_forward.gate * self.dropout(self.feed_forward(y))  # (B, T, D)


class FinalLayer(nn.Module):
    """Steered norm, then a linear layer that starts at zero: (B, T, D) to (B, T, output_size)."""

    def __init__(
        self, hidden_size: int, *, output_size: int, condition_size: int, conditioning: Conditioning
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.modulation = conditioning.build(
            hidden_size, condition_size=condition_size, sublayers=1, gated=False
        )
        self.linear = nn.Linear(hidden_size, output_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def condition_paths(self) -> dict[ConditionPath, list[nn.Module]]:
        """Its modulation, apart from those of the blocks; `linear` sees x_t as well."""
        return {ConditionPath.FINAL: [self.modulation]}

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        (steering,) = self.modulation(condition)  # (B, 1, D)
        return self.linear(steering.scale * self.norm(x) + steering.shift)  # (B, T, output_size)
