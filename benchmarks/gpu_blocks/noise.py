"""Moments of the noise that is drawn on the device, and that no two processes draw the same."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from gpu_blocks.setting import Setting
from lightning_dp.privacy.noise import GaussianNoise

SECONDS = 20


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    noise, at_once, times = GaussianNoise(), setting.of(10**7, 10**4), 10
    sums = torch.zeros(4, dtype=torch.float64, device=setting.device)
    largest = 0.0
    for _ in range(times):
        values = noise.standard_normal(torch.Size([at_once]), device=setting.device)
        largest = max(largest, float(values.abs().max()))
        values = values.double()
        sums += torch.stack([values.pow(power).sum() for power in range(1, 5)])
    n = at_once * times
    mean, square, cube, fourth = (float(value) / n for value in sums)
    deviations = {
        "mean": mean * math.sqrt(n),
        "variance": (square - 1) * math.sqrt(n / 2),
        "skewness": cube * math.sqrt(n / 15),
        "kurtosis": (fourth - 3) * math.sqrt(n / 96),
    }
    yield {
        "case": "moments",
        "values": n,
        "standard_deviation": math.sqrt(square),
        "kurtosis": fourth,
        "largest": largest,
        "in_standard_errors": deviations,
        "within": all(abs(value) < 5 for value in deviations.values()),
    }
    ours, others = (GaussianNoise().standard_normal(torch.Size([8]), device=setting.device) for _ in range(2))
    yield {"case": "two sources differ", "within": not bool((ours == others).any())}
    sum_ = torch.zeros(at_once, device=setting.device)
    place = sum_.data_ptr()
    out = noise.add_to(sum_, scale=3.0)
    yield {
        "case": "added in place",
        "within": out.data_ptr() == place,
        "standard_deviation": float(out.std()),
        "nanoseconds_a_value": 1e9 / at_once * setting.seconds(lambda: noise.add_to(sum_, scale=1.0)),
    }
