"""Self-attention from plain linear layers, so that every per-example gradient rule applies to it."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, T, D).

    Args:
        hidden_size: D, a multiple of `num_heads`.
        num_heads: H.
    """

    def __init__(self, hidden_size: int, *, num_heads: int) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"hidden_size is {hidden_size} and num_heads {num_heads}, but heads share the width equally: "
                "choose a multiple."
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def fused_layers(self) -> dict[str, tuple[str, ...]]:
        """What low-rank adapters see as matrices of their own."""
        return {"qkv": ("q", "k", "v")}

    def forward(self, x: Tensor, *, queries: Tensor | None = None) -> Tensor:
        """(B, T, D) → (B, T, D), or (B, t, D) where only the tokens `queries` (t,) ask."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, H, T, D/H)
        if queries is not None:
            q = q[:, :, queries]  # (B, H, t, D/H)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, H, T, D/H)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, D)
