"""The card, the versions, and what the cost rule's constants stand for: products, bytes and launches."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu_blocks.setting import Setting

SECONDS = 20
_PACKAGES = ("lightning", "diffusers", "opacus", "dp-accounting", "peft", "transformers", "numpy", "triton")


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"case": "versions", **_versions(), "card": _card(setting)}
    width = setting.of(8192, 64)
    for dtype, precision in (
        (torch.float32, "highest"),
        (torch.float32, "high"),
        (torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(width, width, device=setting.device, dtype=dtype) for _ in range(2))
        seconds = setting.seconds(lambda a=a, b=b: a @ b)
        tf32 = precision == "high"
        yield {
            "case": "products",
            "dtype": str(dtype),
            "tf32": tf32,
            "flops_per_second": 2 * width**3 / seconds,
        }
    torch.set_float32_matmul_precision("highest")
    numbers = torch.zeros(setting.of(1 << 29, 1 << 16), device=setting.device)
    seconds = setting.seconds(lambda: numbers.add_(1))
    yield {"case": "memory", "bytes_per_second": 8 * len(numbers) / seconds}
    one = torch.zeros(1, device=setting.device)
    launches = setting.of(2000, 50)
    seconds = setting.seconds(lambda: [one.add_(1) for _ in range(launches)])
    yield {"case": "launches", "seconds_per_launch": seconds / launches}
    seconds = setting.seconds(lambda: [float(one) for _ in range(20)])
    yield {"case": "reads by the host", "seconds_per_read": seconds / 20}


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if sys.version_info < (3, 11) or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        raise RuntimeError(f"Python 3.11 and torch 2.11 or newer are needed, these are {found}")
    return found


def _card(setting: Setting) -> dict[str, Any]:
    if setting.fake:
        return {"name": "none: a CPU at toy size"}
    about = torch.cuda.get_device_properties(setting.device)
    return {
        "name": about.name,
        "bytes": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        "capability": [about.major, about.minor],
        "cuda": torch.version.cuda,
    }
