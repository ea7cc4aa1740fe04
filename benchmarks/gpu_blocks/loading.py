"""Rows on their way to the device: pinned copies, the Poisson draw of many units, and a loader's workers."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from gpu_blocks.setting import Setting, attempt
from lightning_dp.privacy.sampling import PoissonSampler

SECONDS = 20


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for pinned in setting.of((False, True), (False,)):  # memory is pinned for a device only
        yield attempt("pinned copies" if pinned else "copies", lambda p=pinned: _copies(setting, pinned=p))
    for units in setting.of((10**6, 10**7), (10**4,)):
        yield attempt("Poisson draw", lambda n=units: _draw(setting, n))
    for workers in (0, 2):
        yield attempt("workers", lambda w=workers: _workers(setting, w))


def _copies(setting: Setting, *, pinned: bool) -> dict[str, Any]:
    rows = torch.empty(setting.of(256, 1), 1 << 18, pin_memory=pinned)
    product = torch.randn(setting.of(4096, 16), setting.of(4096, 16), device=setting.device)

    def both() -> None:
        product @ product
        rows.to(setting.device, non_blocking=True)

    alone = setting.seconds(lambda: rows.to(setting.device, non_blocking=True))
    busy = setting.seconds(lambda: product @ product)
    return {
        "bytes": 4 * rows.numel(),
        "copy_seconds": alone,
        "product_seconds": busy,
        "both_seconds": setting.seconds(both),
    }


def _draw(setting: Setting, units: int) -> dict[str, Any]:
    sampler = PoissonSampler(num_units=units, sampling_rate=256 / units)
    start = time.perf_counter()
    drawn = [len(sampler.draw()) for _ in range(5)]
    return {"units": units, "drawn": drawn, "draw_seconds": (time.perf_counter() - start) / 5}


def _workers(setting: Setting, workers: int) -> dict[str, Any]:
    """From asking for batches to the first one, with the device in use by this process, and each later."""
    torch.zeros(1, device=setting.device)
    data = TensorDataset(torch.randn(setting.of(4096, 64), 64))
    start = time.perf_counter()
    batches = iter(DataLoader(data, batch_size=32, num_workers=workers))
    next(batches)
    first = time.perf_counter() - start
    count = sum(1 for _ in batches)
    each = (time.perf_counter() - start - first) / max(1, count)
    return {"num_workers": workers, "first_seconds": first, "each_seconds": each}
