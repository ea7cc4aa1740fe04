"""Residual blocks, which know the time, where a UNet of diffusers changes resolution by one convolution.

As the networks of latent diffusion with `resblock_updown` (Dhariwal & Nichol, arXiv 2105.05233): averages of
2 × 2 on the way down, repetition on the way up, each inside of a residual block. diffusers' UNet with
cross-attention has no such option, so its blocks are wrapped, and the result is not in diffusers' format.
"""

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def resample_by_residual_blocks(unet: Any) -> None:
    """Replace the convolutions of a `UNet2DConditionModel` that change resolution, in place.

    Args:
        unet: as it was made.
    """
    settings = {
        "temb_channels": unet.time_embedding.linear_2.out_features,
        "groups": unet.config.norm_num_groups,
        "eps": unet.config.norm_eps,
        "time_embedding_norm": unet.config.resnet_time_scale_shift,
    }
    for number, block in enumerate(unet.down_blocks):
        if block.downsamplers is not None:
            width = block.downsamplers[0].channels
            block.downsamplers = None
            unet.down_blocks[number] = _Down(block, ResnetBlock2D(in_channels=width, down=True, **settings))
    for number, block in enumerate(unet.up_blocks):
        if block.upsamplers is not None:
            width = block.upsamplers[0].channels
            block.upsamplers = None
            unet.up_blocks[number] = _Up(block, ResnetBlock2D(in_channels=width, up=True, **settings))


class _Wrapped(nn.Module):
    """A block, and what follows it."""

    def __init__(self, block: nn.Module, resample: nn.Module) -> None:
        super().__init__()
        self.block: Any = block
        self.resample = resample

    # What the UNet asks its blocks.

    @property
    def has_cross_attention(self) -> bool:
        return getattr(self.block, "has_cross_attention", False)

    @property
    def resnets(self) -> nn.ModuleList:
        return self.block.resnets


class _Down(_Wrapped):
    def forward(
        self, hidden_states: Tensor, temb: Tensor, **condition: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, skipped = self.block(hidden_states=hidden_states, temb=temb, **condition)  # (B, d, s, s)
        hidden = self.resample(hidden, temb)  # (B, d, s/2, s/2)
        return hidden, (*skipped, hidden)


class _Up(_Wrapped):
    def forward(self, hidden_states: Tensor, temb: Tensor, **condition: Any) -> Tensor:
        hidden = self.block(hidden_states=hidden_states, temb=temb, **condition)  # (B, d, s, s)
        return self.resample(hidden, temb)  # (B, d, 2s, 2s)
