"""A text encoder that trains with the network that reads it."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.nets.tokenizers import Tokenizer


@final
class CaptionTransformer(nn.Module):
    """Tokens to states: a transformer encoder that starts at random, as the BERT of latent diffusion.

    Every token sees every other of its own caption, what stands for nothing included (arXiv 2112.10752,
    appendix E.2.1, and its code). DP-LDM's has 32 layers of width 1280 with 8 heads of 64.

    Args:
        tokenizer: whose tokens it reads; the data makes them by an equal one.
        width: W of the states.
        depth: ≥ 1 layers.
        num_heads: heads.
        head_size: channels of a head; None shares the width among the heads.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        head_size: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"CaptionTransformer.depth is {depth}; it must be at least 1: 32 is DP-LDM's.")
        if head_size is None and width % num_heads:
            raise ValueError(
                f"CaptionTransformer.width is {width} and num_heads {num_heads}, but heads share the width "
                "equally: choose a multiple, or give head_size."
            )
        self.tokenizer = tokenizer
        self.width = width
        self.token = nn.Embedding(tokenizer.vocabulary_size, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokenizer.length, width))
        inner = num_heads * (head_size or width // num_heads)
        self.blocks = nn.ModuleList([_Block(width, inner=inner, num_heads=num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 to (B, L, W)."""
        x = self.token(tokens) + self.position  # (B, L, W)
        for block in self.blocks:
            x = block(x)  # (B, L, W)
        return self.norm(x)


class _Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the identity."""

    def __init__(self, width: int, *, inner: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)  # (B, L, W)
        q, k, v = (
            layer(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )  # each (B, H, L, d)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, H, L, d)
        x = x + self.out(y.transpose(1, 2).flatten(2))  # (B, L, W)
        return x + self.feed(self.second(x))
