"""Whether a step leaves something of its data behind for later steps.

Two copies take a step on different data with the same random numbers. Afterwards their buffers and
weights must be equal bit for bit (a step counter is), and so must what both do with a third batch: that
sees state in plain Python attributes too, where it has an influence on a gradient. State outside of the
module, and what a step keeps without using it, is out of reach.
"""

import itertools

import torch
from torch import Tensor, nn

from lightning_dp.privacy.draws import LinedUp
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.gradient import difference
from lightning_dp.privacy.preflight.trial import Trial

_FIX = (
    "keep no statistics of the data: drop it, use public constants, or learn it before training by a paid "
    "release (preparations())"
)


def find_memory(trial: Trial) -> list[Finding]:
    """Buffers, frozen weights and attributes that depend on the data of an earlier step."""
    step, units = trial.step, trial.units
    modules = [step.copy(with_weights=True) for _ in range(2)]
    for module, data in zip(modules, ([0, 1, 2], [3, 4, 5]), strict=True):
        step.gradient(units.pick(data), draws=LinedUp(), module=module)
    states = [_state(module) for module in modules]
    found = [
        Finding(
            code="remembers",
            place=f"'{name}'",
            problem="depends on the data of the last batch, and no clipping bounds what it keeps of a unit",
            fix=_FIX,
        )
        for name, (first, second) in _pairs(*states)
        if not _same(first, second)
    ]
    if found:
        return found
    later = [step.gradient(units.pick([1, 4, 6]), draws=LinedUp(), module=module) for module in modules]
    where = difference(*later, among=later)
    if where is None:
        return []
    return [
        Finding(
            code="remembers",
            place=f"an attribute of {type(trial.step.module).__name__}",
            problem=f"depends on the data of an earlier batch and changes the gradient of '{where}'",
            fix=_FIX,
        )
    ]


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: t.detach() for name, t in itertools.chain(module.named_buffers(), module.named_parameters())
    }


def _pairs(
    first: dict[str, Tensor], second: dict[str, Tensor]
) -> list[tuple[str, tuple[Tensor | None, Tensor | None]]]:
    return [(name, (first.get(name), second.get(name))) for name in {**first, **second}]


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None or first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_floating_point():
        return bool(torch.equal(first.isnan(), second.isnan())) and bool(
            torch.equal(first.nan_to_num(nan=0.0), second.nan_to_num(nan=0.0))
        )
    return bool(torch.equal(first, second))
