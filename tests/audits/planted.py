"""Faults that an audit has to see, each planted in the project's own code in one place."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch

from lightning_dp.privacy import noise, sampling
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.sampling import PoissonSampler


@contextmanager
def half_the_noise() -> Iterator[None]:
    """P5: noise × .5."""
    honest = Ranks.release

    def quiet(self, sums, *, noise, scale):
        return honest(self, sums, noise=noise, scale=scale / 2)

    with patch.object(Ranks, "release", quiet):
        yield


@contextmanager
def clipping_after_the_mean(batch: int = 12, max_grad_norm: float = 1.0) -> Iterator[None]:
    """P6: the batch's sum is clipped, as if its mean were clipped to C, and no unit's gradient is."""
    take = UnitSums.take

    def limited(self):
        sums = take(self)
        norm = float(torch.stack([value.double().square().sum() for value in sums.values()]).sum().sqrt())
        factor = min(1.0, max_grad_norm * batch / max(norm, 1e-12))
        return {name: value * factor for name, value in sums.items()}

    with (
        patch.object(UnitSums, "_factors", lambda self, norms: torch.ones_like(norms)),
        patch.object(UnitSums, "take", limited),
    ):
        yield


@contextmanager
def shuffled_batches() -> Iterator[None]:
    """P1: every unit in exactly one batch of every epoch, accounted as Poisson."""

    def draw(self):
        if not getattr(self, "_waiting", []):
            count = max(1, round(len(self._units) * self._sampling_rate))
            order = self._generator.permutation(self._units)
            self._waiting = [order[start : start + count] for start in range(0, len(order), count)]
        return np.sort(self._waiting.pop()).tolist()

    with patch.object(PoissonSampler, "draw", draw):
        yield


@contextmanager
def published_seed() -> Iterator[None]:
    """P15: noise and batches from the seed of the run folder's config.yaml."""

    def seeded() -> int:
        return int(os.environ["PL_GLOBAL_SEED"])

    with patch.object(noise, "entropy_bits", seeded), patch.object(sampling, "entropy_bits", seeded):
        yield


FAULTS: dict[str, tuple[Callable, str]] = {
    "noise × .5": (half_the_noise, "step"),
    "clipping after the mean": (clipping_after_the_mean, "step"),
    "shuffled batches": (shuffled_batches, "batches"),
    "the seed published": (published_seed, "seed"),
}
"""By name, how it is planted and which adversary is to see it."""
