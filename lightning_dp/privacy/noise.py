"""Gaussian noise from the operating system's entropy.

The generator is made afresh for every process from 256 bits of `os.urandom`, is never seeded by a
user, never saved and never shared: no checkpoint, restart or fork can draw the same noise twice.
"""

import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Where Gaussian noise comes from; holds nothing that could be saved, seeded or shared."""

    def standard_normal(self, shape: torch.Size, *, device: torch.device) -> Tensor:
        """Independent N(0, 1) values on `device`."""
        ...

    def add_to(self, sums: Tensor, *, scale: float) -> Tensor:
        """Add noise of standard deviation `scale` to `sums`, in place; return them."""
        ...


class GaussianNoise:
    """Standard normal tensors; one source per process."""

    def __init__(self) -> None:
        self._pid = -1
        self._cpu: np.random.Generator | None = None
        self._device_generators: dict[torch.device, torch.Generator] = {}

    def __getstate__(self) -> dict[str, object]:
        raise TypeError("the noise generator's state is never saved or copied: make a new GaussianNoise()")

    def standard_normal(self, shape: torch.Size, *, device: torch.device) -> Tensor:
        """Independent N(0, 1) values, fp32, on `device`."""
        if os.getpid() != self._pid:  # first use, or a fork that inherited our state
            self._refresh()
        if device.type == "cpu":
            assert self._cpu is not None
            return torch.from_numpy(self._cpu.standard_normal(tuple(shape), dtype=np.float32))
        if device not in self._device_generators:
            self._device_generators[device] = generator_on(device)
        return torch.randn(shape, generator=self._device_generators[device], device=device)

    def add_to(self, sums: Tensor, *, scale: float) -> Tensor:
        """Add noise of standard deviation `scale` to `sums`, in place; return them."""
        return sums.add_(self.standard_normal(sums.shape, device=sums.device), alpha=scale)

    def _refresh(self) -> None:
        # A torch CPU generator would keep 32 bits of a seed; numpy's keep all of them.
        self._cpu = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy_bits())))
        self._device_generators = {}
        self._pid = os.getpid()


def generator_on(device: torch.device) -> torch.Generator:
    """A generator of torch's with 63 bits of the operating system's entropy, all that its seed takes."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    return generator


def entropy_bits() -> int:
    """256 bits from the operating system as one integer."""
    return int.from_bytes(os.urandom(32), "little")
