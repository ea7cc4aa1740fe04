"""Couplings that wait: for values that made-up units don't have by themselves, or for a later step.

Each round tries other values, and asks whether the loss of a batch is still the mean of the losses of its
parts. A round that the step can't do (a logarithm of something negative, an index out of range) says nothing.
"""

from collections.abc import Iterator

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.preflight.coupling import couples
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.numbers import works
from lightning_dp.privacy.preflight.step import TrainingStep
from lightning_dp.privacy.preflight.trial import NUM_UNITS, Trial
from lightning_dp.privacy.preflight.values import (
    SENTINELS,
    gaps,
    large,
    positive,
    signs_and_gaps,
    whole,
)

_CLASSES = 5 * NUM_UNITS
"""Labels that are all tried; of more than that, as many that lie evenly."""


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
    later = step.moments[1:]
    losses = [step.value(batch, draws=RowAlignedRandomness())]
    for moment in later:
        with step.at(moment):
            losses.append(step.value(batch, draws=RowAlignedRandomness()))
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
        for leaf in units.leaves_of("float"):
            zeros = units.changed(gaps([leaf], 0.0))
            yield couples(trial, zeros, range(4), when="where values are 0")
    yield couples(trial, units.changed(large), range(4), when="where values are large")


def _flags(trial: Trial) -> Iterator[list[Finding] | None]:
    leaves = trial.units.leaves_of("flag")
    for together in [leaves, *([leaf] for leaf in leaves)] if leaves else []:
        found = couples(
            trial,
            trial.units.changed(gaps(together, 1.0)),
            range(4),
            when="where masks differ between units",
        )
        yield found
        if found is not None:
            return


def _whole_numbers(trial: Trial) -> Iterator[list[Finding] | None]:
    leaves = trial.units.leaves_of("whole")
    if not leaves:
        return
    here, trial.step = trial.step, trial.step.on_cpu()
    try:
        if not abs(trial.step.value(trial.units.pick([1]), draws=RowAlignedRandomness())) < float("inf"):
            yield [_only_elsewhere(here)]
        for leaf in leaves:
            yield from _labels(trial, leaf)
    finally:
        trial.step = here


def _labels(trial: Trial, leaf: int) -> Iterator[list[Finding] | None]:
    count, units = trial.counts[leaf], trial.units
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
        if number and not works(trial.step, units, leaf, number, share=True):
            continue
        changed = units.changed(gaps([leaf], number))
        yield couples(trial, changed, range(4), when=f"where whole numbers are {number}")


def _only_elsewhere(step: TrainingStep) -> Finding:
    return Finding(
        code="unchecked",
        place="training_step",
        problem=(
            f"runs on {step.device} only, where a label out of range ends the process, so no labels but the "
            "made-up ones could not be tried"
        ),
        fix="let it run on the CPU as well",
    )
