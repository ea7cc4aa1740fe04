"""Fixed and learnt embeddings: positions, diffusion time, and what is known of a series."""

import math

import torch
from torch import Tensor, nn


def sinusoids(positions: Tensor, *, size: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017, §3.5).

    Args:
        positions: (N,) of any real dtype.
        size: width of the result, even.
        max_period: longest period, in positions / 2π.

    Returns:
        (N, size) fp32.
    """
    if size % 2:
        raise ValueError(f"size is {size}, but sines and cosines come in pairs: choose an even width.")
    half = size // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * frequencies  # (N, size/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (N, size)


class TimestepEmbedding(nn.Module):
    """Diffusion time (B,) in [0, num_steps) to (B, size): sinusoids, then a two-layer MLP.

    Args:
        size: width of the result.
        num_frequencies: width of the sinusoids, even.
    """

    def __init__(self, size: int, *, num_frequencies: int = 64) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.inner = nn.Linear(num_frequencies, size)
        self.activation = nn.SiLU()
        self.outer = nn.Linear(size, size)

    def forward(self, timesteps: Tensor) -> Tensor:
        waves = sinusoids(timesteps, size=self.num_frequencies)  # (B, num_frequencies)
        waves = waves.to(self.inner.weight.dtype)  # a net may be in fp64
        return self.outer(self.activation(self.inner(waves)))  # (B, size)


class ContextEncoder(nn.Module):
    """What is known of a window, pooled into one vector: (B, T, P) token features to (B, size).

    Each token is embedded together with its fixed position, passed through a GELU, averaged over the tokens
    and projected. The average is over a fixed number of tokens, so no row depends on another.

    Args:
        token_size: P, features per token (observed values, mask, covariates).
        size: width of the result.
        num_tokens: T.
    """

    positions: Tensor

    def __init__(self, token_size: int, *, size: int, num_tokens: int) -> None:
        super().__init__()
        self.inner = nn.Linear(token_size, size)
        self.activation = nn.GELU()
        self.outer = nn.Linear(size, size)
        # Full-strength positions before the nonlinearity keep the average from forgetting which token said
        # what.
        self.register_buffer("positions", sinusoids(torch.arange(num_tokens), size=size), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.activation(self.inner(tokens) + self.positions)  # (B, T, size)
        return self.outer(hidden.mean(dim=1))  # (B, size)
