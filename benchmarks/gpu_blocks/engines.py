"""One private step of each engine over the non-private one, compiled and not: time, kernels, idle share.

Models, engines and steps are those of `benchmarks/clipping.py`, bf16 under autocast as there. `ratio` is the
median over rounds of an engine's step and the non-private step of the same round.
"""

import statistics
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import clipping
import torch
from torch.profiler import ProfilerActivity, profile

from gpu_blocks.setting import Setting, attempt

SECONDS = 120


class Compiled(clipping.Stepper):
    """The non-private step, compiled."""

    def __init__(self, task: clipping.Task, batch: int, device: str) -> None:
        super().__init__(task, batch, device)
        self.model = torch.compile(self.model, backend="inductor" if device == "cuda" else "eager")


class CompiledEngine(clipping.EngineStepper):
    """The clipping engine in a compiled step."""

    def __init__(self, task: clipping.Task, batch: int, device: str) -> None:
        super().__init__(task, batch, device)
        self.whole = torch.compile(self.model, backend="inductor" if device == "cuda" else "eager")

    def forward(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            return self.losses(self.whole, self.batch).float()


ENGINES: dict[str, type[clipping.Stepper]] = {
    "book_keeping": clipping.EngineStepper,
    "opacus_hooks": clipping.OpacusHooks,
    "opacus_ghost": clipping.OpacusGhost,
    "fastdp": clipping.FastDP,
    "non_private_compiled": Compiled,
    "book_keeping_compiled": CompiledEngine,
}
# All of one size before the next: small batches, where launches count, and large ones.
_PLAN = tuple((model, batch) for batch in (64, 256, 16) for model in ("ts", "img", "unet_lora", "resnet"))


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    if find_spec("fastDP") is None:
        yield {"case": "fastdp", "ok": False, "error": "fastDP can't be imported: it was not carried along"}
    names = [name for name in ENGINES if name != "fastdp" or find_spec("fastDP") is not None]
    for model, batch in setting.of(_PLAN, (("ts", 2),)):
        task = clipping.series(hidden=16, depth=1, tokens=8) if setting.fake else clipping.MODELS[model]()
        plain = clipping.Stepper(task, batch, setting.kind)
        yield {"model": model, "batch": batch, "engine": "non_private", **_alone(setting, plain)}
        for name in names:
            row = attempt(name, lambda n=name, t=task, b=batch, p=plain: _beside(setting, p, n, t, b))
            yield {"model": model, "batch": batch, "engine": name, **row}
            if setting.left() < 5:
                return


def _beside(
    setting: Setting, plain: clipping.Stepper, name: str, task: clipping.Task, batch: int
) -> dict[str, Any]:
    stepper = ENGINES[name](task, batch, setting.kind)
    for _ in range(2):
        stepper.step()
    ratios = []
    for _ in range(setting.of(9, 1)):
        own, base = (_once(setting, one) for one in (stepper, plain))
        ratios.append(own / base)
    return {"ratio": statistics.median(ratios), **_alone(setting, stepper)}


def _once(setting: Setting, stepper: clipping.Stepper) -> float:
    setting.wait()
    start = time.perf_counter()
    stepper.step()
    setting.wait()
    return time.perf_counter() - start


def _alone(setting: Setting, stepper: clipping.Stepper) -> dict[str, Any]:
    """Seconds of a step, its kernels, and for which share of it the device has nothing to do."""
    for _ in range(2):
        stepper.step()
    seconds = statistics.median(_once(setting, stepper) for _ in range(setting.of(5, 1)))
    row: dict[str, Any] = {"step_seconds": seconds}
    with setting.peak(row):
        stepper.step()
    activities = [ProfilerActivity.CPU] if setting.fake else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as seen:
        _once(setting, stepper)
    events = [e for e in seen.events() if setting.fake or "cuda" in str(e.device_type).lower()]
    busy = _covered([(e.time_range.start, e.time_range.end) for e in events]) / 1e6
    return {**row, "kernels": len(events), "idle": max(0.0, 1 - busy / seconds)}


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals: kernels may overlap, and be listed within one another."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
