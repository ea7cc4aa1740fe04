"""diffusers' UNets as `ImageNet`s: one steered by an added class embedding, one by cross-attention."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from lightning_dp.nets.caption_transformer import CaptionTransformer
from lightning_dp.nets.conditioning.path import ConditionPath
from lightning_dp.nets.image_net import ImageNet, class_rows
from lightning_dp.nets.residual_resampling import resample_by_residual_blocks
from lightning_dp.nets.tokenizers import Tokenizer


class UNet(ImageNet):
    """`UNet2DModel`: the class is added to the time embedding.

    Args:
        in_channels: C.
        size: S, a multiple of 2^(levels − 1).
        num_classes: classes; 0 for none.
        block_out_channels: width of each level, from fine to coarse.
        attention: for each level, whether it has self-attention.
        layers_per_block: residual layers of each level.
        norm_groups: groups of each GroupNorm; divides every width.
        head_size: channels of an attention head.
        scale_shift_norm: whether the time scales and shifts what a residual layer has normalised, rather than
            being added before.
        residual_resampling: whether residual layers change the resolution, rather than convolutions alone.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int,
        num_classes: int,
        block_out_channels: Sequence[int] = (32, 64, 64),
        attention: Sequence[bool] = (False, True, True),
        layers_per_block: int = 1,
        norm_groups: int = 8,
        head_size: int = 16,
        scale_shift_norm: bool = False,
        residual_resampling: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, size=size, num_classes=num_classes)
        _check_levels(self, block_out_channels, attention=attention, norm_groups=norm_groups)
        # The coarsest level always has attention, in the middle of the net.
        with_heads = [w for w, own in zip(block_out_channels, [*attention[:-1], True], strict=True) if own]
        wrong = [width for width in with_heads if width % head_size]
        if wrong:
            raise ValueError(
                f"UNet.head_size is {head_size}, which does not divide the width {wrong[0]} of "
                "block_out_channels: choose a common divisor."
            )
        self.unet: Any = UNet2DModel(
            sample_size=size,
            in_channels=in_channels,
            out_channels=in_channels,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_groups,
            attention_head_dim=head_size,
            resnet_time_scale_shift="scale_shift" if scale_shift_norm else "default",
            downsample_type="resnet" if residual_resampling else "conv",
            upsample_type="resnet" if residual_resampling else "conv",
            # The last row is "no class", for unlabelled images and for guidance.
            num_class_embeds=num_classes + 1,
        )

    def condition_modules(self) -> list[nn.Module]:
        """What makes the condition."""
        return [self.unet.time_embedding, self.unet.class_embedding]

    def condition_paths(self) -> dict[ConditionPath, list[nn.Module]]:
        """Every way of time and class, as `nets.conditioning.path` asks for them."""
        return {ConditionPath.ENCODER: self.condition_modules(), **unet_paths(self.unet)}

    def embedder_modules(self) -> list[nn.Module]:
        """What embeds the class, as adapters ask for it."""
        return [self.unet.class_embedding]

    def output_modules(self) -> list[nn.Module]:
        """The last layers, as adapters ask for them."""
        return [self.unet.conv_norm_out, self.unet.conv_out]

    def forward(self, noisy: Tensor, timesteps: Tensor, *, labels: Tensor) -> Tensor:
        rows = class_rows(labels, num_classes=self.num_classes)  # (B,)
        return self.unet(noisy, timesteps, class_labels=rows, return_dict=False)[0]  # (B, C, S, S)


class CrossAttentionUNet(ImageNet):
    """`UNet2DConditionModel`: spatial transformers attend to a learnt token of the class, or to a caption.

    The layout of Stable Diffusion, with a class embedder in place of a text encoder, or with a text encoder
    that trains, as in DP-LDM (arXiv 2305.15759).

    Args:
        in_channels: C.
        size: S, a multiple of 2^(levels − 1).
        num_classes: classes; 0 for none, or for captions.
        block_out_channels: width of each level, from fine to coarse.
        attention: for each level, whether it has spatial transformers.
        layers_per_block: residual layers of each level.
        norm_groups: groups of each GroupNorm; divides every width.
        num_heads: of attention.
        condition_size: width of the class token.
        text: what makes states of captions, in place of the class token; None for classes.
        scale_shift_norm: whether the time scales and shifts what a residual layer has normalised, rather than
            being added before.
        residual_resampling: whether residual layers change the resolution, rather than convolutions alone.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int,
        num_classes: int,
        block_out_channels: Sequence[int] = (32, 64, 64),
        attention: Sequence[bool] = (False, True, True),
        layers_per_block: int = 1,
        norm_groups: int = 8,
        num_heads: int = 4,
        condition_size: int = 64,
        text: CaptionTransformer | None = None,
        scale_shift_norm: bool = False,
        residual_resampling: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, size=size, num_classes=num_classes)
        _check_levels(self, block_out_channels, attention=attention, norm_groups=norm_groups)
        if text is not None and num_classes:
            raise ValueError(
                f"CrossAttentionUNet.num_classes is {num_classes} beside a text encoder, but a caption "
                "stands for all there is to say: set num_classes to 0, or text to null."
            )
        self.text = text
        self.label = nn.Embedding(num_classes + 1, condition_size) if text is None else None
        self.unet: Any = UNet2DConditionModel(
            sample_size=size,
            in_channels=in_channels,
            out_channels=in_channels,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_groups,
            attention_head_dim=num_heads,  # diffusers' name for the number of heads
            cross_attention_dim=condition_size if text is None else text.width,
            resnet_time_scale_shift="scale_shift" if scale_shift_norm else "default",
        )
        if residual_resampling:
            resample_by_residual_blocks(self.unet)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return None if self.text is None else self.text.tokenizer

    def condition_modules(self) -> list[nn.Module]:
        """What makes the condition, as `nets.conditioning.path` asks for it."""
        return [self.unet.time_embedding, *self.embedder_modules()]

    def condition_paths(self) -> dict[ConditionPath, list[nn.Module]]:
        """Every way of time and class, as `nets.conditioning.path` asks for them."""
        return {ConditionPath.ENCODER: self.condition_modules(), **unet_paths(self.unet)}

    def embedder_modules(self) -> list[nn.Module]:
        """What embeds the class or the caption, as adapters ask for it."""
        return [module for module in (self.label, self.text) if module is not None]

    def output_modules(self) -> list[nn.Module]:
        """The last layers, as adapters ask for them."""
        return [self.unet.conv_norm_out, self.unet.conv_out]

    def forward(
        self, noisy: Tensor, timesteps: Tensor, *, labels: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        return self.unet(
            noisy, timesteps, encoder_hidden_states=self._states(labels, tokens), return_dict=False
        )[0]  # (B, C, S, S)

    def _states(self, labels: Tensor, tokens: Tensor | None) -> Tensor:
        """(B, L, width) of captions; (B, 1, condition_size) of classes."""
        if self.text is None:
            assert self.label is not None
            return self.label(class_rows(labels, num_classes=self.num_classes))[:, None]
        if tokens is None:  # made from the rows, so that it is known whose they are
            tokens = self.text.tokenizer([""]).to(labels.device) + torch.zeros_like(labels)[:, None]
        return self.text(tokens)


def _check_levels(
    net: ImageNet, block_out_channels: Sequence[int], *, attention: Sequence[bool], norm_groups: int
) -> None:
    name = type(net).__name__
    if not block_out_channels or len(attention) != len(block_out_channels):
        raise ValueError(
            f"{name}.attention has {len(attention)} entries and block_out_channels "
            f"{len(block_out_channels)}; give one of each per level, from fine to coarse."
        )
    if net.size % 2 ** (len(block_out_channels) - 1):
        raise ValueError(
            f"{name}.size is {net.size}, which {len(block_out_channels)} levels can't halve "
            f"{len(block_out_channels) - 1} times: take fewer levels, or images of another size."
        )
    wrong = [width for width in block_out_channels if width % norm_groups]
    if wrong:
        raise ValueError(
            f"{name}.norm_groups is {norm_groups}, which does not divide the width {wrong[0]} of "
            "block_out_channels: choose a common divisor."
        )


def unet_paths(unet: nn.Module) -> dict[ConditionPath, list[nn.Module]]:
    """How a condition acts in a UNet of diffusers, after what makes it: by residual blocks and attentions."""
    modulations: list[nn.Module] = []
    attentions: list[nn.Module] = []
    for layer in unet.modules():
        if isinstance(layer, ResnetBlock2D) and layer.time_emb_proj is not None:
            modulations.append(layer.time_emb_proj)
        elif isinstance(layer, Attention) and layer.is_cross_attention:
            attentions += [layer.to_k, layer.to_v]
    return {ConditionPath.MODULATION: modulations, ConditionPath.ATTENTION: attentions}
