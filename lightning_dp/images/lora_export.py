"""LoRA weights of a run on a Stable Diffusion checkpoint, as `pipeline.load_lora_weights` reads them."""

from pathlib import Path

from diffusers import StableDiffusionPipeline
from torch import Tensor

from lightning_dp.adapters.dylora import TruncatedLinear
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.images.stable_diffusion import StableDiffusionUNet

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def has_lora(module: LatentDiffusion) -> bool:
    """Whether low-rank pairs are part of the net."""
    return any(name.endswith((_A, _B)) for name, _ in module.net.named_parameters())


def save_lora(module: LatentDiffusion, *, out: Path) -> int:
    """Write pytorch_lora_weights.safetensors, rank and scale included; return the number of layers.

    Layers whose B is 0 add nothing, and are left out.

    Raises:
        ValueError: the net is none that diffusers knows, or more than LoRA has been trained.
    """
    from peft.tuners.lora import LoraLayer

    net = module.net
    if not isinstance(net, StableDiffusionUNet):
        raise ValueError(
            f"the run trained a {type(net).__name__}, which diffusers has no pipeline for; weights of a "
            "StableDiffusionUNet can be exported, and 'lightning-dp sample' draws from any run."
        )
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    others = [name for name in trained if not (name.startswith("unet.") and name.endswith((_A, _B)))]
    if others:
        raise ValueError(
            f"the run trained {others[0]} and {len(others) - 1} others, which are no LoRA weights of "
            "the UNet, so a LoRA file would leave them out: 'lightning-dp sample' draws from any run."
        )
    weights: dict[str, Tensor] = {}
    paths: list[str] = []
    rank, scale = 0, 0.0
    state = net.unet.state_dict()
    for path, layer in net.unet.named_modules():
        if isinstance(layer, LoraLayer):
            down = layer.lora_A["default"]
            used = down.rank if isinstance(down, TruncatedLinear) else layer.r["default"]
            a = state[path + _A][:used].cpu().contiguous()
            b = state[path + _B][:, :used].cpu().contiguous()
            if b.any():
                weights |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
                paths.append(path)
                rank, scale = used, layer.lora_alpha["default"]
    if not weights:
        raise ValueError("the run's LoRA is still at its start, where it adds nothing: train it first.")
    about = {"r": rank, "lora_alpha": scale, "lora_dropout": 0.0, "bias": "none", "target_modules": paths}
    StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=weights, unet_lora_adapter_metadata=about)
    return len(paths)
