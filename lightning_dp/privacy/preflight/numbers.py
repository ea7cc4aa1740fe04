"""How many whole numbers a step takes: they are looked up in tables, whose length is found by trying.

No value of the data is read for it: the step runs on one made-up unit, on the CPU, where a number out of
range raises.
"""

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.preflight.made_up import MadeUp
from lightning_dp.privacy.preflight.step import TrainingStep
from lightning_dp.privacy.preflight.values import Change, all_of, gaps

_LARGEST = 2**17
"""Whole numbers beyond it are no labels or tokens: pixels, stamps."""


def count(step: TrainingStep, units: MadeUp, leaf: int) -> int | None:
    """How many there are from 0 on; None where there is no end, or nothing works."""
    if works(step, units, leaf, _LARGEST) or not works(step, units, leaf, 0):
        return None
    low, high = 0, 1
    while works(step, units, leaf, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(step, units, leaf, middle) else (low, middle)
    return low + 1


def works(step: TrainingStep, units: MadeUp, leaf: int, number: int, *, share: bool = False) -> bool:
    """Whether there is a finite loss where a leaf is `number`, or a share of it is."""
    change: Change = gaps([leaf], number) if share else all_of(leaf, number)
    try:
        changed = units.changed(change)
    except (RuntimeError, OverflowError):  # the column's type has no such number
        return False
    # Unit 1 has gaps also where a unit has one entry.
    return abs(step.value(changed.pick([1]), draws=RowAlignedRandomness())) < float("inf")
