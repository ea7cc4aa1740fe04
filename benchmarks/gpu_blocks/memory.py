"""Peak memory of a DiT-L/2 step in bf16: plain or private, with activation checkpointing or without."""

from collections.abc import Iterator
from typing import Any

import clipping
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpu_blocks.setting import Setting, attempt
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat, PerLayer
from lightning_dp.privacy.follow_rows import follow_rows

SECONDS = 45


class _Checkpointed(nn.Module):
    """A block whose activations are computed again in backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, *inputs, use_reentrant=False)


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    functions: list[ClippingFunction | None] = [None, Flat(), PerLayer()]
    for function in functions:
        for saved in (False, True):
            name = "non-private" if function is None else type(function).__name__
            row = attempt(name, lambda f=function, s=saved: _step(setting, f, saved=s))
            yield {**row, "checkpointing": saved}


def _step(setting: Setting, function: ClippingFunction | None, *, saved: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    hidden, depth, heads, units = setting.of((1024, 24, 16, 32), (16, 2, 2, 2))
    patches = nn.Conv2d(4, hidden, 2, stride=2)
    size = {"hidden": hidden, "depth": depth, "heads": heads, "tokens": 64, "out": 16}
    model = clipping.DiT(patches, **size).to(setting.device)
    if saved:
        model.blocks = nn.ModuleList(_Checkpointed(block) for block in model.blocks)
    batch = (torch.randn(units, 4, 16, 16), torch.rand(units) * 1000, torch.randn(units, 64, 16))
    batch = tuple(part.to(setting.device) for part in batch)
    losses = clipping.image().losses
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "units": units}
    engine = BookKeeping() if function is not None else None
    if engine is not None and function is not None:
        engine.know(follow_rows(model, losses, batch, num_units=units))
        engine.attach(model, function=function, max_grad_norm=1.0)

    def step() -> None:
        model.zero_grad()
        if engine is not None:
            engine.expect(unit_weights=torch.ones(units), rows_per_unit=1)
        with torch.autocast(setting.kind, torch.bfloat16):
            found = losses(model, batch)
        found.float().mean().backward()
        if engine is not None:
            engine.collect()
            engine.take()

    step()
    with setting.peak(row):
        step()
    return {**row, "step_seconds": setting.seconds(step, rounds=2, warm=0)}
