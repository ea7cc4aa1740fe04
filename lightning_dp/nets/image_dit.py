"""A diffusion transformer over square patches of images or latents (DiT, arXiv 2212.09748)."""

import torch
from torch import Tensor, nn

from lightning_dp.nets.conditioning.modulation import Conditioning
from lightning_dp.nets.dit import DiTBlock, FinalLayer
from lightning_dp.nets.embeddings import TimestepEmbedding, sinusoids
from lightning_dp.nets.image_net import ImageNet, class_rows


class ImageDiT(ImageNet):
    """One token per patch; time and class steer every block through the condition vector.

    Legend: B rows, C channels, S side, p patch side, T = (S/p)² tokens, D hidden size.

    Args:
        conditioning: how the condition steers: `AdaLNZero` or `DPAwareAdaLNZero`.
        in_channels: C.
        size: S.
        num_classes: classes; 0 for none.
        patch_size: p, a divisor of S. Half of it is a quarter of the tokens' pixels and four times the cost.
        hidden_size: D, a multiple of 4.
        depth: number of blocks.
        num_heads: of attention.
        mlp_ratio: feed-forward width over D.
        condition_size: width of the condition vector; None for D.
    """

    positions: Tensor

    def __init__(
        self,
        conditioning: Conditioning,
        *,
        in_channels: int,
        size: int,
        num_classes: int,
        patch_size: int = 4,
        hidden_size: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        condition_size: int | None = None,
    ) -> None:
        super().__init__(in_channels=in_channels, size=size, num_classes=num_classes)
        if patch_size < 1 or size % patch_size:
            raise ValueError(
                f"ImageDiT.patch_size is {patch_size} and size {size}, but patches tile the image: "
                "choose a divisor."
            )
        if depth < 1:
            raise ValueError(f"ImageDiT.depth is {depth}, but a transformer has at least one block.")
        if hidden_size % 4:
            raise ValueError(
                f"ImageDiT.hidden_size is {hidden_size}, but positions in two directions take sines and "
                "cosines each: choose a multiple of 4."
            )
        self.patch_size = patch_size
        condition_size = hidden_size if condition_size is None else condition_size
        token_size = in_channels * patch_size**2
        self.timestep = TimestepEmbedding(condition_size)
        # The last row is "no class", for unlabelled images and for guidance.
        self.label = nn.Embedding(num_classes + 1, condition_size)
        # Twenty-five times DiT's: a few hundred noisy steps can't make classes stand out from the timestep.
        nn.init.normal_(self.label.weight, std=0.5)
        self.embed = nn.Linear(token_size, hidden_size)
        self.blocks = nn.ModuleList(
            DiTBlock(
                hidden_size,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                condition_size=condition_size,
                conditioning=conditioning,
            )
            for _ in range(depth)
        )
        self.final = FinalLayer(
            hidden_size, output_size=token_size, condition_size=condition_size, conditioning=conditioning
        )
        side = sinusoids(torch.arange(size // patch_size), size=hidden_size // 2)  # (S/p, D/2)
        across, down = side[None, :].expand(len(side), -1, -1), side[:, None].expand(-1, len(side), -1)
        self.register_buffer("positions", torch.cat([down, across], dim=-1).flatten(0, 1), persistent=False)

    def condition_modules(self) -> list[nn.Module]:
        """What makes the condition; all else of it is modulation."""
        return [self.timestep, self.label]

    def embedder_modules(self) -> list[nn.Module]:
        """What embeds the class, as adapters ask for it."""
        return [self.label]

    def output_modules(self) -> list[nn.Module]:
        """The last layer, as adapters ask for it."""
        return [self.final]

    def forward(self, noisy: Tensor, timesteps: Tensor, *, labels: Tensor) -> Tensor:
        p, across = self.patch_size, self.size // self.patch_size
        rows = class_rows(labels, num_classes=self.num_classes)  # (B,)
        condition = self.timestep(timesteps) + self.label(rows)  # (B, condition_size)
        tokens = noisy.unflatten(3, (across, p)).unflatten(2, (across, p))  # (B, C, S/p, p, S/p, p)
        tokens = tokens.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, T, C·p²)
        x = self.embed(tokens) + self.positions  # (B, T, D)
        for block in self.blocks:
            x = block(x, condition)  # (B, T, D)
        y = self.final(x, condition)  # (B, T, C·p²)
        y = y.unflatten(2, (-1, p, p)).unflatten(1, (across, across))  # (B, S/p, S/p, C, p, p)
        return y.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (B, C, S, S)
