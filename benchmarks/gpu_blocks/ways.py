"""Each way to a layer's norms and sum, by shape and by size of a piece: constants for the cost rule."""

from collections.abc import Iterator
from typing import Any, get_args

import torch

from gpu_blocks.setting import Setting
from lightning_dp.privacy.clipping._book_keeping import convolutions, per_unit_gradient
from lightning_dp.privacy.clipping._book_keeping.norm_method import NormMethod
from lightning_dp.privacy.clipping.exact import exact_products

SECONDS = 60
_MIB = 1 << 20
# Units, tokens, outputs, inputs.
_SHAPES = (
    (64, 64, 256, 256),
    (64, 256, 384, 384),
    (256, 256, 384, 384),
    (16, 1024, 320, 320),
    (16, 1024, 1280, 320),
    (16, 4096, 320, 320),
    (256, 16, 1024, 1024),
    (64, 77, 1280, 768),
    (256, 16, 64, 64),
    (16, 256, 2048, 2048),
)


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for shape in setting.of(_SHAPES, ((2, 6, 8, 8), (2, 70, 8, 8))):
        for dtype in (torch.bfloat16, torch.float32):
            yield from _linear(setting, shape, dtype)
    for shape in setting.of(((64, 64, 16), (16, 320, 32), (16, 640, 16)), ((2, 8, 6),)):
        yield _convolution(setting, shape)


def _linear(setting: Setting, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    units, tokens, outputs, inputs = shape
    a, g = (
        torch.randn(units, tokens, width, device=setting.device, dtype=dtype) for width in (inputs, outputs)
    )
    factors = torch.rand(units, device=setting.device, dtype=torch.float64)
    chosen = per_unit_gradient.OuterProductGradient(a, g).method()
    largest = setting.of(1024, 1)
    for way in get_args(NormMethod):
        if way == "outer" or (way == "keep" and 4 * units * outputs * inputs > 8 << 30):
            continue
        for piece in (1,) if way == "ghost" else (1, 64, largest):
            before = per_unit_gradient._CHUNK_BYTES, per_unit_gradient._KEPT_BYTES
            per_unit_gradient._CHUNK_BYTES = per_unit_gradient._KEPT_BYTES = piece * _MIB

            def work(way: NormMethod = way) -> None:
                with exact_products():
                    use: per_unit_gradient.Use = per_unit_gradient.OuterProductGradient(a, g)
                    if way == "keep":
                        use = use.kept()  # type: ignore[attr-defined]
                        use.squared_norms()
                    else:
                        use.squared_norms(way)  # type: ignore[call-arg]
                    use.weighted_sum(factors)

            try:
                row: dict[str, Any] = {"way": way, "piece_mib": piece}
                row["milliseconds"] = 1000 * setting.seconds(work, rounds=3, warm=1)
            finally:
                per_unit_gradient._CHUNK_BYTES, per_unit_gradient._KEPT_BYTES = before
            yield {"shape": list(shape), "dtype": str(dtype), "chosen": chosen, **row}


def _convolution(setting: Setting, shape: tuple[int, int, int]) -> dict[str, Any]:
    """A 3 × 3 convolution's whole clipped step, and the plain one."""
    from lightning_dp.privacy.clipping.book_keeping import BookKeeping
    from lightning_dp.privacy.clipping.functions import Flat
    from lightning_dp.privacy.follow_rows import follow_rows

    units, channels, side = shape
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(setting.device)
    batch = torch.randn(units, channels, side, side, device=setting.device)

    def losses(module: Any, rows: torch.Tensor) -> torch.Tensor:
        return module(rows).square().flatten(1).mean(dim=1)

    plain = setting.seconds(lambda: losses(layer, batch).mean().backward(), rounds=3, warm=1)
    layer.zero_grad()
    engine = BookKeeping()
    engine.know(follow_rows(layer, losses, batch, num_units=units))
    engine.attach(layer, function=Flat(), max_grad_norm=1.0)

    def step() -> None:
        engine.expect(unit_weights=torch.ones(units), rows_per_unit=1)
        losses(layer, batch).mean().backward()
        engine.collect()
        engine.take()

    private = setting.seconds(step, rounds=3, warm=1)
    engine.detach()
    shown = {"shape": list(shape), "layer": "conv 3x3", "launch_mib": convolutions._LAUNCH_BYTES // _MIB}
    return {**shown, "plain_milliseconds": 1000 * plain, "milliseconds": 1000 * private}
