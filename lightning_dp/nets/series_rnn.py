"""A recurrent denoiser for windows of a multichannel series: the baseline beside the transformer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_dp.nets.conditioning.modulation import Conditioning
from lightning_dp.nets.recurrent import GRU, RecurrentCell
from lightning_dp.nets.series_net import SeriesNet


class RecurrentBlock(nn.Module):
    """Both directions over the tokens, steered by the condition and gated, as a `DiTBlock`'s attention is.

    Args:
        hidden_size: D, even: half of it in each direction.
        cell: from widths of input and state to a layer of one direction.
        condition_size: width of the condition.
        conditioning: how the condition steers.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        cell: Callable[[int, int], RecurrentCell],
        condition_size: int,
        conditioning: Conditioning,
    ) -> None:
        super().__init__()
        # Affine-free: scale and shift come from the condition.
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.ahead = cell(hidden_size, hidden_size)
        self.back = cell(hidden_size, hidden_size)
        self.out = nn.Linear(2 * hidden_size, hidden_size)
        self.modulation = conditioning.build(
            hidden_size, condition_size=condition_size, sublayers=1, gated=True
        )

    def forward(self, x: Tensor, condition: Tensor, *, queries: Tensor | None = None) -> Tensor:
        """x: (B, T, D), condition: (B, condition_size) → (B, T, D), or (B, t, D) of the tokens `queries`."""
        (steering,) = self.modulation(condition)  # each of (B, 1, D)
        y = steering.scale * self.norm(x) + steering.shift  # (B, T, D)
        y = torch.cat([self.ahead(y), self.back(y, reverse=True)], dim=-1)  # (B, T, 2 · D)
        if queries is not None:
            x, y = x[:, queries], y[:, queries]  # from here on T counts these
        return x + steering.gate * self.out(y)  # (B, T, D)


class SeriesRNN(SeriesNet):
    """`SeriesNet` of recurrent blocks, which run over a window in both directions.

    All else is the transformer's: tokens, condition and the paths past the blocks, so that what differs in a
    comparison with `SeriesDiT` is how tokens learn of each other.

    Args:
        conditioning: how the condition steers blocks and final layer.
        length: L, steps of a window, context and horizon together.
        num_channels: C.
        num_covariates: F, may be 0.
        cell: `GRU` or `LSTM`.
        patch_size: p, steps per token; divides `length`.
        hidden_size: D, even; of tokens, and of the state in each direction.
        depth: number of blocks.
        condition_size: width of the condition vector; None for D.
        channel_independent: every channel is a row of its own under shared weights, and `rows_per_example`
            becomes C; otherwise a token holds all channels.
        linear_skip: whether a linear map and x_t itself run past the blocks.
        token_context: whether a token holds what is known of its own steps, and not x_t alone.
    """

    def __init__(
        self,
        conditioning: Conditioning,
        *,
        length: int,
        num_channels: int,
        num_covariates: int,
        cell: Callable[[int, int], RecurrentCell] = GRU,
        patch_size: int = 24,
        hidden_size: int = 64,
        depth: int = 2,
        condition_size: int | None = None,
        channel_independent: bool = True,
        linear_skip: bool = True,
        token_context: bool = True,
    ) -> None:
        def block(condition_size: int) -> RecurrentBlock:
            return RecurrentBlock(
                hidden_size, cell=cell, condition_size=condition_size, conditioning=conditioning
            )

        super().__init__(
            conditioning,
            block_fn=block,
            length=length,
            num_channels=num_channels,
            num_covariates=num_covariates,
            patch_size=patch_size,
            hidden_size=hidden_size,
            depth=depth,
            condition_size=condition_size,
            channel_independent=channel_independent,
            linear_skip=linear_skip,
            token_context=token_context,
        )
