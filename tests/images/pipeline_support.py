"""Pipeline folders without text, tiny and with random weights."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)


def write_ddpm(folder: Path, *, channels: int = 3) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def write_dit(folder: Path) -> Path:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,  # a learned variance, as published
        num_layers=1,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    with torch.no_grad():
        # AdaLN-Zero starts without an effect; random weights make the classes differ.
        for parameter in transformer.parameters():
            parameter.normal_(0, 0.2)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    names = {number: f"thing {number}" for number in range(1000)}
    DiTPipeline(transformer, vae, DDIMScheduler(), id2label=names).save_pretrained(folder)
    return folder
