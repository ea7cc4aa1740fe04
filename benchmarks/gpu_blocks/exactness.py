"""Whether clipped sums are exact there: every rule against one unit at a time, every way against fp64.

`difference` is the largest relative error of a unit's norm or a parameter's sum; `norm_over_bound` the norm,
in fp64, of the sum of one clipped unit divided by C. A failure here outranks everything else.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from gpu_blocks.setting import Setting, attempt
from lightning_dp.privacy.clipping._book_keeping.norm_method import NormMethod
from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import OuterProductGradient
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.fp32_precision import full_precision

SECONDS = 45
_UNITS, _BOUND = 6, 0.05


class _Tied(nn.Module):
    """One weight as table and as output, a position table by hand, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.position = nn.Parameter(torch.randn(5, 16))
        self.twice = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.position  # (B, T, D)
        return self.twice(torch.tanh(self.twice(x))) @ self.table.weight.T


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def _lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    net: Any = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
    return get_peft_model(net, LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights=False))


_CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(16, 24), (16,)),
    "linear, few tokens": (lambda: nn.Linear(16, 24), (9, 16)),
    "linear, many tokens": (lambda: nn.Linear(16, 24), (130, 16)),
    "linear, wide": (lambda: nn.Linear(256, 512), (70, 256)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), (4, 20)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), (4, 12, 12)),
    "conv2d, large map": (lambda: nn.Conv2d(8, 8, 3, padding=1), (8, 32, 32)),
    "conv2d, groups": (lambda: nn.Conv2d(8, 8, 3, groups=4), (8, 9, 9)),
    "group norm": (lambda: nn.GroupNorm(2, 8), (8, 6, 6)),
    "layer norm": (lambda: nn.LayerNorm(16), (9, 16)),
    "rms norm": (lambda: nn.RMSNorm(16), (9, 16)),
    "attention": (_Attention, (9, 16)),
    "embedding, tied, by hand": (_Tied, (5,)),
    "lora": (_lora, (9, 16)),
}
_PRECISIONS = {"fp32": ("highest", False), "fp32 with TF32": ("high", False), "bf16": ("highest", True)}


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for precision, (products, half) in _PRECISIONS.items():
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = products == "high"
        for name, (build, shape) in _CASES.items():
            row = attempt(name, lambda b=build, s=shape, h=half: _against_loop(setting, b, s, half=h))
            yield {"precision": precision, **row}
        row = attempt("clipped unit", lambda h=half: _clipped_unit(setting, half=h))
        yield {"precision": precision, **row}
    torch.set_float32_matmul_precision("highest")
    for dtype in (torch.float32, torch.bfloat16):
        for way in get_args(NormMethod):
            for cancel in (False, True):
                work = lambda d=dtype, w=way, c=cancel: _way(setting, w, dtype=d, cancel=c)  # noqa: E731
                row = attempt(f"way {way}{', cancelling' * cancel}", work)
                yield {"precision": str(dtype), **row}


def _step(setting: Setting, engine: ClippingEngine, model: nn.Module, batch: Tensor, *, half: bool) -> Any:
    def losses(module: nn.Module, rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=half):
            out = module(rows)
        return out.float().flatten(1).square().mean(dim=1) * 100

    engine.know(follow_rows(model, losses, batch, num_units=len(batch)))
    engine.attach(model, function=Flat(), max_grad_norm=_BOUND)
    try:
        engine.expect(unit_weights=torch.ones(len(batch)), rows_per_unit=1)
        losses(model, batch).mean().backward()
        # Forward and backward are as imprecise as they like; what is done with them is not.
        with full_precision():
            return engine.collect(), engine.take()
    finally:
        engine.detach()


def _against_loop(
    setting: Setting, build: Callable[[], nn.Module], shape: tuple[int, ...], *, half: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build().to(setting.device)
    size = (_UNITS, *shape)
    batch = torch.randint(11, size) if isinstance(model, _Tied) else torch.randn(size)
    batch = batch.to(setting.device)
    norms, sums = _step(setting, BookKeeping(), model, batch, half=half)
    true_norms, true_sums = _step(setting, Loop(), model, batch, half=half)
    whole = math.sqrt(sum(float(value.double().square().sum()) for value in true_sums.values()))
    errors = [float(((norms - true_norms).abs() / true_norms).max())]
    for name, true in true_sums.items():
        size_of = max(float(true.double().norm()), 1e-2 * whole)
        errors.append(float((sums[name] - true).double().norm()) / size_of)
    # In bf16 it is the loop that is rounded: autograd gives each unit's gradient of a layer in bf16.
    allowed = 2e-2 if half else 1e-5
    return {"difference": max(errors), "allowed": allowed, "within": max(errors) <= allowed}


def _clipped_unit(setting: Setting, *, half: bool) -> dict[str, Any]:
    """Of a net of several kinds of layers, one unit far beyond the bound."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Flatten(2), nn.Linear(64, 32))
    model = nn.Sequential(*layers, nn.LayerNorm(32), nn.Linear(32, 8)).to(setting.device)
    batch = torch.randn(1, 3, 8, 8, device=setting.device) * 30
    norms, sums = _step(setting, BookKeeping(), model, batch, half=half)
    found = math.sqrt(sum(float(value.double().square().sum()) for value in sums.values()))
    return {
        "norm_over_bound": found / _BOUND,
        "unclipped": float(norms[0]),
        "within": found <= _BOUND * (1 + 1e-5),
    }


def _way(setting: Setting, way: NormMethod, *, dtype: torch.dtype, cancel: bool) -> dict[str, Any]:
    """Norms and sum by one way, of tokens that may cancel to a part in a million."""
    torch.manual_seed(0)
    units, tokens, p, d = setting.of((16, 256, 384, 192), (3, 10, 12, 8))
    tokens = 1 if way == "outer" else tokens
    a, g = (torch.randn(units, tokens, width) for width in (d, p))
    if cancel and tokens > 1:
        half = tokens // 2
        a[:, half : 2 * half] = a[:, :half]
        g[:, half : 2 * half] = -g[:, :half]
        a[:, -1], g[:, -1] = 1e-3, 1e-3
    a, g = (side.to(setting.device, dtype) for side in (a, g))
    true = torch.bmm(g.double().transpose(1, 2), a.double())  # (U, p, d)
    squares = true.flatten(1).square().sum(dim=1)
    use = OuterProductGradient(a, g)
    found = use.squared_norms(way)
    floor = use.floor()
    assert floor is not None
    # Below the floor the engine goes another way, which is exact.
    found = torch.where(found < floor, use.exact_squares(torch.arange(units, device=a.device)), found)
    factors = torch.rand(units, device=a.device)
    total = use.weighted_sum(factors)
    wanted = (true * factors.double()[:, None, None]).sum(dim=0)
    norm = float(((found.sqrt() - squares.sqrt()).abs() / squares.sqrt().clamp_min(1e-30)).max())
    scale = (a.double().flatten(1).norm(dim=1) * g.double().flatten(1).norm(dim=1)).sum()
    return {
        "difference": norm,
        "difference_of_sum": float((total - wanted).norm() / scale),
        "within": norm <= 1e-4,
    }
