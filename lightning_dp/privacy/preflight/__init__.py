"""What in a model, its loss or its data would break the guarantee, found before any private row is read.

A training step is tried on made-up units (`inspect_step`), and the layers are looked at (`find_in_layers`).
Every finding names its code, the place and the fix; `settle` raises one error for all that nobody gives a
reason for.

Not found here: state outside of the module, what a step does only on private values or after many steps,
and a data set whose items are not what its unit says. The trainer's part is in `callbacks`.
"""

from collections.abc import Callable

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.preflight.broken_units import find_spoilt_batches
from lightning_dp.privacy.preflight.clipped_sum import find_wrong_sums
from lightning_dp.privacy.preflight.coupling import find_coupling
from lightning_dp.privacy.preflight.finding import (
    CODES,
    Accepted,
    Finding,
    answered,
    check_accept,
    settle,
)
from lightning_dp.privacy.preflight.following import find_unfollowed, learn_layout
from lightning_dp.privacy.preflight.layers import find_in_layers
from lightning_dp.privacy.preflight.made_up import MadeUp, MadeUpItems, MadeUpUnits
from lightning_dp.privacy.preflight.memory import find_memory
from lightning_dp.privacy.preflight.rounds import find_coupling_in_rounds
from lightning_dp.privacy.preflight.seeds import find_seeds
from lightning_dp.privacy.preflight.step import HookFailed, Moment, StepFailed, TrainingStep
from lightning_dp.privacy.preflight.trial import NUM_UNITS, Trial
from lightning_dp.privacy.preflight.vacuous import find_vacuous

__all__ = [
    "CODES",
    "NUM_UNITS",
    "Accepted",
    "Finding",
    "HookFailed",
    "MadeUp",
    "MadeUpItems",
    "MadeUpUnits",
    "Moment",
    "StepFailed",
    "TrainingStep",
    "Trial",
    "answered",
    "check_accept",
    "find_in_layers",
    "inspect_step",
    "settle",
]


def inspect_step(trial: Trial) -> list[Finding]:
    """Everything that trying the step shows; later checks are left out where an earlier one explains them."""
    found: list[Finding] = []
    learn_layout(trial)
    try:
        while not trial.step.gradient(
            trial.units.pick(range(NUM_UNITS)), draws=RowAlignedRandomness()
        ).is_finite:
            if trial.step.open_gates():
                continue
            return [
                Finding(
                    code="unchecked",
                    place="training_step",
                    problem="gives no finite gradient on made-up units, so nothing could be compared",
                    fix="give the data module synthetic_units(num_units) with values that are possible",
                )
            ]
        found += [*find_memory(trial), *find_seeds(trial)]
        among_units = (find_coupling, find_coupling_in_rounds, _find_unfollowed_if_nothing_else(found))
        for check in (
            *(among_units if trial.units_meet else ()),
            find_wrong_sums,
            *((find_spoilt_batches,) if trial.units_meet else ()),
            find_vacuous,
        ):
            now = check(trial)
            found += now
            if now:
                break
        if trial.units_meet and not trial.sites.answers:
            find_unfollowed(trial)  # of use to the engine where somebody answers for what was found
    except StepFailed as error:
        found.append(
            Finding(
                code="fails",
                place="training_step",
                problem=f"fails on made-up units: {error}",
                fix=(
                    "make it run on any batch of one unit or more, and give the data module "
                    + (
                        "synthetic_items(num_items) with values that are possible"
                        if isinstance(trial.units, MadeUpItems)
                        else "synthetic_items(num_items): only what has one entry a unit can be cut"
                    )
                ),
            )
        )
    return found


def _find_unfollowed_if_nothing_else(found: list[Finding]) -> Callable[[Trial], list[Finding]]:
    """What was found already explains why a step can't be followed, and in better words."""

    def check(trial: Trial) -> list[Finding]:
        now = find_unfollowed(trial)
        return [] if found else now

    return check
