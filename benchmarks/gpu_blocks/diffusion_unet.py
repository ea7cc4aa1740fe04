"""A private step of a UNet of Stable Diffusion 1's size, random weights, 256 pixels, bf16, part by part."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from gpu_blocks.setting import Setting, attempt
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.ranks import Ranks

SECONDS = 90
_ATTENTION = ("to_q", "to_k", "to_v", "to_out")
_TOY = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for trained in ("lora", "attention", "full"):
        for units in setting.of((8, 16), (2,)):
            row = attempt(trained, lambda t=trained, u=units: _step(setting, t, u))
            yield {**row, "units": units}


def _unet(setting: Setting, trained: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    size = {"sample_size": setting.of(32, 8), "cross_attention_dim": 768}
    with setting.device:
        net: Any = UNet2DConditionModel(**{**size, **setting.of({}, _TOY)})
    if trained == "lora":
        from peft import LoraConfig

        net.requires_grad_(False)
        targets = [*_ATTENTION[:3], "to_out.0"]
        net.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=targets))
        return net.to(setting.device)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(trained == "full" or any(f".{part}." in name for part in _ATTENTION))
    return net


def _step(setting: Setting, trained: str, units: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = _unet(setting, trained)
    side, width = setting.of((32, 768), (8, 16))
    latents = torch.randn(units, 4, side, side, device=setting.device)
    times = torch.randint(0, 1000, (units,), device=setting.device)
    states = torch.randn(units, 77, width, device=setting.device)
    batch = (latents, times, states, torch.randn_like(latents))

    def losses(module: Any, rows: Any) -> torch.Tensor:
        x, t, condition, target = rows
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            out = module(x, t, encoder_hidden_states=condition).sample
        return (out.float() - target).square().flatten(1).mean(dim=1)

    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    row: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "trained": sum(p.numel() for p in net.parameters() if p.requires_grad),
    }

    def plain() -> None:
        losses(net, batch).mean().backward()

    with setting.peak(found := {}):
        row["plain_seconds"] = setting.seconds(plain, rounds=3, warm=1)
    row["plain_peak_bytes"] = found["peak_bytes"]
    net.zero_grad()
    engine, ranks, noise = BookKeeping(), Ranks(), GaussianNoise()
    start = time.perf_counter()
    engine.know(follow_rows(net, losses, batch, num_units=units))
    row["follow_seconds"] = time.perf_counter() - start  # once a fit, on the CPU
    engine.attach(net, function=Flat(), max_grad_norm=1.0)
    parts: dict[str, list[float]] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        setting.wait()
        since = time.perf_counter()
        result = work()
        setting.wait()
        parts.setdefault(part, []).append(time.perf_counter() - since)
        return result

    with setting.peak(row):
        for _ in range(setting.of(4, 2)):
            engine.expect(unit_weights=torch.ones(units), rows_per_unit=1)
            loss = timed("forward", lambda: losses(net, batch).mean())
            timed("backward", loss.backward)
            timed("collect", engine.collect)
            sums = engine.take()
            timed("release", lambda sums=sums: ranks.release(sums, noise=noise, scale=1.0))
    engine.detach()
    seconds = {f"{part}_seconds": min(values[1:]) for part, values in parts.items()}
    return {**row, **seconds, "step_seconds": sum(seconds.values()), "tensors": len(names)}
