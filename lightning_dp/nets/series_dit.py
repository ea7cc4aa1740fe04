"""A 1-D diffusion transformer for windows of a multichannel series."""

from lightning_dp.nets.conditioning.modulation import Conditioning
from lightning_dp.nets.dit import DiTBlock
from lightning_dp.nets.series_net import SeriesNet


class SeriesDiT(SeriesNet):
    """`SeriesNet` of transformer blocks.

    With `token_context` and `linear_skip` off, `patch_size=1` and `channel_independent=False` it is TimeDiT
    as arXiv 2602.22610 uses it.

    Args:
        conditioning: how the condition steers blocks and final layer.
        length: L, steps of a window, context and horizon together.
        num_channels: C.
        num_covariates: F, may be 0.
        patch_size: p, steps per token; divides `length`.
        hidden_size: D, even.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: feed-forward width over D.
        condition_size: width of the condition vector; None for D.
        dropout: share of activations dropped in the blocks (no dropout on the linear map).
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
        patch_size: int = 24,
        hidden_size: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        condition_size: int | None = None,
        dropout: float = 0.0,
        channel_independent: bool = True,
        linear_skip: bool = True,
        token_context: bool = True,
    ) -> None:
        def block(condition_size: int) -> DiTBlock:
            return DiTBlock(
                hidden_size,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                condition_size=condition_size,
                conditioning=conditioning,
                dropout=dropout,
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
