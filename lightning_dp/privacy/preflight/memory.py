"""Whether a step leaves something of its data behind for later steps.

Two copies train on different data with the same random numbers and the same noisy gradients, through every
hook. Afterwards their buffers and weights must be equal bit for bit (a step counter is), and so must what a
checkpoint would hold of them, and what both do with a third batch: that sees state in plain Python attributes
too, where it has an influence on a gradient. What is kept in an attribute, is in no checkpoint and changes no
gradient (a metric, a list of losses) is left alone. State outside of the module shows where copies that know
nothing of each other do something else in the end than in the beginning.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.preflight.compare import first_difference, same_tensor
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.gradient import difference
from lightning_dp.privacy.preflight.made_up import MadeUp
from lightning_dp.privacy.preflight.step import HookFailed, TrainingStep
from lightning_dp.privacy.preflight.trial import Trial
from lightning_dp.privacy.preflight.values import whole

_FIX = (
    "keep no statistics of the data: drop it, use public constants, or learn it before training by a paid "
    "release (preparations())"
)
WEIGHTS = "state_dict"
"""What weights and buffers are called among the things that a checkpoint holds."""
_FIRST, _SECOND, _THIRD = (0, 1, 2), (3, 4, 5), (1, 4, 6)


def find_memory(trial: Trial) -> list[Finding]:
    """Buffers, frozen weights, checkpoints and attributes that depend on the data of an earlier step."""
    step = trial.step
    before = _unaware(trial)
    modules = [step.copy(with_weights=True) for _ in range(2)]
    try:
        traces = [
            _trained(step, module, units, picked)
            for module, units, picked in zip(modules, _apart(trial), (_FIRST, _SECOND), strict=True)
        ]
    except HookFailed as error:
        return [_untried(error)]
    for module in modules:
        module.zero_grad()
    found = _kept(modules, traces)
    if found:
        return found
    with step.at(step.moments[-1]):
        later = [
            step.gradient(trial.units.pick(_THIRD), draws=RowAlignedRandomness(), module=module)
            for module in modules
        ]
    where = difference(*later, among=later)
    if where is not None:
        return [
            Finding(
                code="remembers",
                place=f"an attribute of {type(step.module).__name__}",
                problem=f"depends on the data of an earlier batch and changes the gradient of '{where}'",
                fix=_FIX,
            )
        ]
    if _unaware(trial) == before or step.foreign:
        return []
    return [
        Finding(
            code="remembers",
            place=f"something outside of {type(step.module).__name__}",
            problem=(
                "(the data module, a class or a global) keeps something of a batch that changes the loss of "
                "the next"
            ),
            fix=_FIX,
        )
    ]


def _unaware(trial: Trial) -> float:
    return trial.step.value(trial.units.pick(_THIRD), draws=RowAlignedRandomness())


def _trained(
    step: TrainingStep, module: nn.Module, units: MadeUp, picked: Sequence[int]
) -> dict[str, object]:
    """What a checkpoint would hold after a batch at the start and one at the end of training."""
    kept: dict[str, object] = {}
    for moment in dict.fromkeys((step.moments[0], step.moments[-1])):
        with step.at(moment):
            kept = step.train(units.pick(picked), draws=RowAlignedRandomness(), module=module)
    return kept


def _apart(trial: Trial) -> tuple[MadeUp, MadeUp]:
    """Units with whole numbers of the lower half, and of the upper half, as far as a step can do."""
    low = high = trial.units
    for leaf, count in trial.counts.items():
        if count is None or count < 2:
            continue
        halves = list(range(count // 2))[:512], list(range(count // 2, count))[-512:]
        low, high = (
            units.changed(whole(leaf, half)) for units, half in zip((low, high), halves, strict=True)
        )
    if low is high:
        return low, high
    pairs = ((low, _FIRST), (high, _SECOND))
    fine = all(trial.step.value(u.pick(p), draws=RowAlignedRandomness()) < float("inf") for u, p in pairs)
    return (low, high) if fine else (trial.units, trial.units)


def _kept(modules: Sequence[nn.Module], traces: Sequence[dict[str, object]]) -> list[Finding]:
    first, second = map(_state, modules)
    names = [
        name
        for name in {**first, **second}
        if name not in first or name not in second or not same_tensor(first[name], second[name])
    ]
    held = {what: first_difference(one, traces[1].get(what)) for what, one in traces[0].items()}
    found = [
        Finding(
            code="remembers",
            place=what,
            problem=f"holds something of the last batch's data{where and f' in {where!r}'}",
            fix=_FIX,
        )
        for what, where in held.items()
        if where is not None
    ]
    if found and (not names or found[0].place != WEIGHTS):
        return found[:1]  # of a learning rate that was fed, weights are but a consequence
    return [
        Finding(
            code="remembers",
            place=f"'{name}'",
            problem="depends on the data of the last batch, and no clipping bounds what it keeps of a unit",
            fix=_FIX,
        )
        for name in names
    ]


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: t.detach() for name, t in itertools.chain(module.named_buffers(), module.named_parameters())
    }


def _untried(error: HookFailed) -> Finding:
    return Finding(
        code="unchecked",
        place=error.place,
        problem=f"fails on a made-up batch, so nobody knows what it keeps of one: {error}",
        fix=error.fix,
    )
