"""What a run trained, as diffusers reads it: LoRA weights, or a whole UNet with what embeds its condition."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from lightning_dp.adapters.roles import modules_of
from lightning_dp.images.lora_export import has_lora, save_lora
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.images.stable_diffusion import StableDiffusionUNet, TextModel
from lightning_dp.nets.unet import CrossAttentionUNet, UNet


def save_module(module: LatentDiffusion, *, out: Path) -> list[str]:
    """Write a trained module's weights into a folder.

    Args:
        module: whose net is a UNet of diffusers.
        out: a folder, with the privacy report of the run in it.

    Returns:
        What was written, a line each.

    Raises:
        ValueError: diffusers has no such net, or the UNet is not all that makes its samples.
    """
    if has_lora(module):
        return [f"{out / 'pytorch_lora_weights.safetensors'} ({save_lora(module, out=out)} layers)"]
    return [str(path) for path in save_unet(module, out=out)]


def save_unet(module: LatentDiffusion, *, out: Path) -> list[Path]:
    """Write OUT/unet/ as `from_pretrained` reads it, and what embeds the condition beside it.

    A text encoder of transformers becomes OUT/text_encoder/; our own embedders one file of tensors.

    Returns:
        The folders and files.

    Raises:
        ValueError: diffusers has no such net, or the UNet is not all that makes its samples.
    """
    if not isinstance(module.net, StableDiffusionUNet | CrossAttentionUNet | UNet):
        raise ValueError(
            f"the run trained a {type(module.net).__name__}, which diffusers has no class for; UNets of "
            "diffusers can be exported, and 'lightning-dp sample' draws from any run."
        )
    unet = module.net.unet
    with torch.device("meta"):
        again = type(unet).from_config(unet.config)
    if _shapes(again) != _shapes(unet):
        raise ValueError(
            f"the run's {type(module.net).__name__} has blocks that diffusers' {type(unet).__name__} lacks, "
            "as of residual_resampling, so its weights would not load there: 'lightning-dp sample' draws "
            "from it."
        )
    if module.base_denoiser is not None:
        raise ValueError(
            "the run's samples are made by its UNet and a prior of class means together, and diffusers knows "
            "no such prior: 'lightning-dp sample' draws from it."
        )
    unet.save_pretrained(out / "unet")
    written = [out / "unet"]
    inside = {id(part) for part in unet.modules()}
    for part in modules_of(module.net, "embedder_modules"):
        if id(part) in inside:  # the UNet's own
            continue
        if isinstance(part, TextModel):
            part.model.save_pretrained(out / "text_encoder")
            written.append(out / "text_encoder")
        else:
            path = out / "embedder.safetensors"
            save_file({name: value.contiguous() for name, value in part.state_dict().items()}, path)
            written.append(path)
    return written


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
