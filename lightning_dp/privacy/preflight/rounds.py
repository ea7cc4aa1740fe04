"""Couplings that wait: for values that made-up units don't have by themselves, or for a later step.

Each round tries other values, and asks whether the loss of a batch is still the mean of the losses of its
parts. A round that the step can't do (a logarithm of something negative, an index out of range) says nothing.
Whole numbers are looked up in tables, so how many there are is found by trying: the largest that works.
"""

from collections.abc import Iterator
from typing import final

from lightning_dp.privacy.preflight.coupling import couples
from lightning_dp.privacy.preflight.draws import LinedUp
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.made_up import MadeUp
from lightning_dp.privacy.preflight.step import TrainingStep
from lightning_dp.privacy.preflight.trial import NUM_UNITS, Trial
from lightning_dp.privacy.preflight.values import (
    SENTINELS,
    Change,
    all_of,
    gaps,
    large,
    positive,
    signs_and_gaps,
    whole,
)

_LARGEST = 2**17
"""Whole numbers beyond it are no labels or tokens: pixels, stamps."""
_CLASSES = 5 * NUM_UNITS
"""Labels that are all tried; of more than that, as many that lie evenly."""
_LEAVES = 8


def find_coupling_in_rounds(trial: Trial) -> list[Finding]:
    """The first coupling that other values, or a later step, show."""
    for round_of in (_times, _floats, _flags, _whole_numbers):
        for found in round_of(trial):
            if found:
                return found
    return []


def _times(trial: Trial) -> Iterator[list[Finding] | None]:
    step, chosen = trial.step, range(4)
    batch = trial.units.pick(chosen)
    first, *later = step.moments
    losses = [step.value(batch, draws=LinedUp())]
    for moment in later:
        with step.at(moment):
            losses.append(step.value(batch, draws=LinedUp()))
            if losses[-1] not in losses[:-1]:  # else the step does what it did before
                yield couples(trial, trial.units, chosen, when=moment.name)


def _floats(trial: Trial) -> Iterator[list[Finding] | None]:
    units = trial.units
    if not units.num_floats:
        return
    found = couples(trial, units.changed(signs_and_gaps), range(5), when="where values are 0, −1 or −100")
    yield found
    if found is None:
        yield couples(trial, units.changed(positive), range(4), when="at other values")
        for leaf in _of_kind(units, "float"):
            zeros = units.changed(gaps([leaf], 0.0))
            yield couples(trial, zeros, range(4), when="where values are 0")
    yield couples(trial, units.changed(large), range(4), when="where values are large")


def _flags(trial: Trial) -> Iterator[list[Finding] | None]:
    for leaf in _of_kind(trial.units, "flag"):
        masks = trial.units.changed(gaps([leaf], 1.0))
        yield couples(trial, masks, range(4), when="where masks differ between units")


def _whole_numbers(trial: Trial) -> Iterator[list[Finding] | None]:
    leaves = _of_kind(trial.units, "whole")
    if not leaves:
        return
    here, trial.step = trial.step, trial.step.on_cpu()
    try:
        if not abs(trial.step.value(trial.units.pick([1]), draws=LinedUp())) < float("inf"):
            yield [_only_elsewhere(here)]
        for leaf in leaves:
            yield from _labels(trial, _Tried(trial.step, trial.units), leaf)
    finally:
        here.reached |= trial.step.reached
        trial.step = here


def _labels(trial: Trial, tried: "_Tried", leaf: int) -> Iterator[list[Finding] | None]:
    count = tried.count(leaf)
    units = trial.units
    if count is not None and count > 1:
        stride = max(1, count / _CLASSES)
        classes = sorted({int(number * stride) for number in range(min(count, _CLASSES))} | {count - 1})
        at_once = max(NUM_UNITS, 2 * units.sizes[leaf])
        for start in range(0, len(classes), at_once):
            now = classes[start : start + at_once]
            changed = units.changed(whole(leaf, now if len(now) > 1 else [0, *now]))
            chosen = range(min(NUM_UNITS, max(4, len(now))))
            yield couples(trial, changed, chosen, when=f"where labels are among {now[0]} to {now[-1]}")
    for number in (*SENTINELS, 0):
        if number and not tried.works(leaf, number, share=True):
            continue
        changed = units.changed(gaps([leaf], number))
        yield couples(trial, changed, range(4), when=f"where whole numbers are {number}")


@final
class _Tried:
    """What whole numbers a step takes, by trying them on one unit."""

    def __init__(self, step: TrainingStep, units: MadeUp) -> None:
        self._step, self._units = step, units

    def works(self, leaf: int, number: int, *, share: bool = False) -> bool:
        """Whether there is a loss, finite or not; NaN where a class is left out is the step's own affair."""
        change: Change = gaps([leaf], number) if share else all_of(leaf, number)
        try:
            units = self._units.changed(change)
        except (RuntimeError, OverflowError):  # the column's type has no such number
            return False
        # Unit 1 has gaps also where a unit has one entry.
        return abs(self._step.value(units.pick([1]), draws=LinedUp())) < float("inf")

    def count(self, leaf: int) -> int | None:
        """How many there are from 0 on; None where there is no end, or nothing works."""
        if self.works(leaf, _LARGEST) or not self.works(leaf, 0):
            return None
        low, high = 0, 1
        while self.works(leaf, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.works(leaf, middle) else (low, middle)
        return low + 1


def _of_kind(units: MadeUp, kind: str) -> list[int]:
    return [leaf for leaf, own in enumerate(units.kinds) if own == kind][:_LEAVES]


def _only_elsewhere(step: TrainingStep) -> Finding:
    return Finding(
        code="unchecked",
        place="training_step",
        problem=(
            f"runs on {step.device} only, where a label out of range ends the process, so other labels than the "
            "made-up ones could not be tried"
        ),
        fix="let it run on the CPU as well",
    )
