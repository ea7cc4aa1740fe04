"""What a whole fit would need: time, memory and data, from two clipped steps on made-up units.

Nothing is trained, no private row is read and nothing is charged. Time is that of this machine and device.
Scope: training; tests and samples come on top.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.preflight import NUM_UNITS, Trial
from lightning_dp.protocols import HasSource, ReadsFiles, provides

_GIB = 2**30
_COPIES = 6
"""Of trained weights: themselves, their clipped sum, noise, an optimizer's two moments, a running average."""


@final
@dataclass(frozen=True, kw_only=True)
class Needs:
    """Of a fit.

    Attributes:
        device: where the steps were taken.
        steps: of the fit.
        units_per_step: expected.
        units_at_once: the largest part of a batch that is computed at once.
        seconds_per_step: of a clipped step with that many units.
        trained, frozen: numbers of parameters.
        weights: bytes of weights, their sum and noise, and an optimizer of two moments.
        unit: bytes that a unit adds to what is held at once.
        files: (path, bytes), None for a file that is not there; None where nobody says which.
    """

    device: str
    steps: int
    units_per_step: int
    units_at_once: int
    seconds_per_step: float
    trained: int
    frozen: int
    weights: float
    unit: float
    files: tuple[tuple[str, int | None], ...] | None

    @property
    def hours(self) -> float:
        """Of all steps."""
        return self.steps * self.seconds_per_step / 3600

    @property
    def memory(self) -> float:
        """Bytes at the largest moment of a step, about."""
        return self.weights + self.units_at_once * self.unit

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        each = f"{self.seconds_per_step:.3g} s"
        yield f"time     about {_duration(self.hours)} for {self.steps:,} steps of {each}"
        yield f"         ({self.units_per_step:,} units each) on {self.device}; tests and samples come on top"
        parts = f"{self.weights / _GIB:.2g} for weights, sums and optimizer"
        yield f"memory   about {self.memory / _GIB:.2g} GiB: {parts}, {self.unit / 2**20:.3g} MiB for each of"
        yield f"         {self.units_at_once:,} units at once (privacy.physical_batch_size)"
        yield f"weights  {self.trained:,} trained, {self.frozen:,} frozen"
        if self.files is None:
            yield "data     read from files that its data module doesn't name"
        for path, size in self.files or ():
            yield f"data     {path}: {'missing' if size is None else f'{size / 2**20:.3g} MiB'}"


def measure(trial: Trial, *, plan: PrivacyPlan, physical_batch_size: int | None, data: Any) -> Needs:
    """Time two sizes of a clipped step, and count what autograd and the engine hold meanwhile.

    Args:
        trial: of the preflight.
        plan: of the fit.
        physical_batch_size: of the fit; None is all of a batch.
        data: the data module, or the train loader.

    Raises:
        StepFailed, RuntimeError, ValueError: the step fails, which the preflight has told.
    """
    batch = plan.expected_batch_size
    at_once = min(batch, physical_batch_size or batch)
    many = 1 if trial.engine.units_at_once == 1 else min(NUM_UNITS - 1, at_once)
    sizes = (1,) if many == 1 else (min(2, many - 1), many)
    _seconds(trial, sizes[0])  # what is made at the first use of anything
    seconds = [min(_seconds(trial, size) for _ in range(2)) for size in sizes]
    held = [_held(trial, size) for size in sizes]
    calls = math.ceil(batch / at_once)
    weights = {True: 0, False: 0}
    frozen_bytes = 0
    for parameter in trial.step.module.parameters():
        weights[parameter.requires_grad] += parameter.numel()
        frozen_bytes += 0 if parameter.requires_grad else parameter.nbytes
    once, each = _line(sizes, seconds)
    _, unit = _line(sizes, held)
    return Needs(
        device=_name(trial.step.device),
        steps=plan.num_steps,
        units_per_step=batch,
        units_at_once=at_once,
        seconds_per_step=calls * once + batch * each,
        trained=weights[True],
        frozen=weights[False],
        weights=_COPIES * 4 * weights[True] + frozen_bytes,
        unit=unit,
        files=_files(data),
    )


def _seconds(trial: Trial, size: int) -> float:
    """Of a clipped step with so many units."""
    if trial.step.device.type == "cuda":
        torch.cuda.synchronize(trial.step.device)
    start = time.perf_counter()
    trial.step.clipped(
        trial.units.pick(range(size)),
        num_units=size,
        rows_per_unit=trial.rows_per_unit,
        engine=trial.engine,
        function=trial.function,
        max_grad_norm=1.0,
        draws=RowAlignedRandomness(),
    )
    if trial.step.device.type == "cuda":
        torch.cuda.synchronize(trial.step.device)
    return time.perf_counter() - start


def _held(trial: Trial, size: int) -> float:
    """Bytes beside the weights that a step with so many units needs at its largest moment."""
    device = trial.step.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _seconds(trial, size)
        return float(torch.cuda.max_memory_allocated(device) - before)
    # Of an ordinary step: the engines' own uses of torch.func go with no such hooks. What layers took in is
    # kept for the backward pass, and for a clipped sum the gradients of what they gave come beside it.
    with _saved() as kept:
        trial.step.gradient(trial.units.pick(range(size)), draws=RowAlignedRandomness())
    return 2.0 * sum(kept.values())


@contextmanager
def _saved() -> Iterator[dict[int, int]]:
    """Bytes by storage of what autograd keeps inside."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed may be given out again

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _line(sizes: tuple[int, ...], values: list[float]) -> tuple[float, float]:
    """(what a call takes, what each unit adds), neither below 0."""
    if len(sizes) == 1:
        return 0.0, values[0] / sizes[0]
    each = max((values[1] - values[0]) / (sizes[1] - sizes[0]), 0.0) or values[1] / sizes[1]
    return max(values[1] - each * sizes[1], 0.0), each


def _files(data: Any) -> tuple[tuple[str, int | None], ...] | None:
    for one in (data, data.source if provides(data, HasSource) else None):
        if provides(one, ReadsFiles):
            return tuple((str(path), _size(path)) for path in one.files())
    return None


def _size(path: Path) -> int | None:
    if path.is_dir():
        return sum(own.stat().st_size for own in path.rglob("*") if own.is_file())
    return path.stat().st_size if path.exists() else None


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} thread(s) of this CPU" if device.type == "cpu" else str(device)


def _duration(hours: float) -> str:
    for limit, unit, per_hour in ((1 / 60, "s", 3600.0), (1.5, "minutes", 60.0), (48, "hours", 1.0)):
        if hours < limit:
            return f"{per_hour * hours:.0f} {unit}"
    return f"{hours / 24:.0f} days"
