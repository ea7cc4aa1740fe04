"""Whether there was anything to look at: what is zero agrees with everything."""

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.gradient import Gradient, difference
from lightning_dp.privacy.preflight.step import StepFailed
from lightning_dp.privacy.preflight.trial import Trial
from lightning_dp.privacy.preflight.values import positive, signs_and_gaps

_UNITS = (0, 1, 2)


def find_vacuous(trial: Trial) -> list[Finding]:
    """Gradients of zero, and gradients that don't depend on a unit's values.

    Parameters that no trial reached are no finding: a batch that reaches one is followed before it is used.
    """
    alone = [trial.alone(unit) for unit in _UNITS]
    if not any(one.norm() for one in alone):
        return [
            _unchecked(
                "training_step",
                "has a gradient of zero for every trainable parameter and made-up unit, so nothing could be "
                "compared",
                "let made-up units have a loss above zero",
            )
        ]
    if _all_alike(alone) and all(_all_alike(again) for again in _with_other_values(trial)):
        return [
            _unchecked(
                "training_step",
                "has the same gradient for all made-up units, so nobody knows what it does with their values",
                "make up units that differ, and a loss that depends on them",
            )
        ]
    return []


def _all_alike(gradients: list[Gradient]) -> bool:
    first, *others = gradients
    return all(difference(first, other, among=gradients) is None for other in others)


def _with_other_values(trial: Trial) -> list[list[Gradient]]:
    found = []
    for change in (signs_and_gaps, positive):
        units = trial.units.changed(change)
        try:
            again = [trial.step.gradient(units.pick([unit]), draws=RowAlignedRandomness()) for unit in _UNITS]
        except StepFailed:
            continue
        if all(one.is_finite for one in again):
            found.append(again)
    return found


def _unchecked(place: str, problem: str, fix: str) -> Finding:
    return Finding(code="unchecked", place=place, problem=problem, fix=fix)
