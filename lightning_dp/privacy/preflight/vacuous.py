"""Whether there was anything to look at: what is zero, or reached by nothing, agrees with everything."""

from lightning_dp.privacy.draws import LinedUp, Recorded
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.gradient import Gradient, difference
from lightning_dp.privacy.preflight.step import StepFailed
from lightning_dp.privacy.preflight.trial import Trial
from lightning_dp.privacy.preflight.values import positive, signs_and_gaps

_UNITS = (0, 1, 2)
_SEEDS = range(2, 8)


def find_vacuous(trial: Trial) -> list[Finding]:
    """Gradients of zero, gradients that don't depend on a unit's values, parameters that no trial reached."""
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
    return _unreached(trial)


def _all_alike(gradients: list[Gradient]) -> bool:
    first, *others = gradients
    return all(difference(first, other, among=gradients) is None for other in others)


def _with_other_values(trial: Trial) -> list[list[Gradient]]:
    found = []
    for change in (signs_and_gaps, positive):
        units = trial.units.changed(change)
        try:
            again = [trial.step.gradient(units.pick([unit]), draws=LinedUp()) for unit in _UNITS]
        except StepFailed:
            continue
        if all(one.is_finite for one in again):
            found.append(again)
    return found


def _unreached(trial: Trial) -> list[Finding]:
    trainable = [name for name, parameter in trial.step.module.named_parameters() if parameter.requires_grad]
    for seed in _SEEDS:
        if trial.step.reached.issuperset(trainable):
            return []
        trial.step.gradient(trial.units.pick(_UNITS), draws=Recorded(seed=seed))
    left = [name for name in trainable if name not in trial.step.reached]
    if not left:
        return []
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return [
        _unchecked(
            f"'{left[0]}'{more}",
            "is reached by no made-up unit, so nobody knows what it would learn",
            "freeze it (requires_grad=False) if nothing uses it, or make up units that reach it",
        )
    ]


def _unchecked(place: str, problem: str, fix: str) -> Finding:
    return Finding(code="unchecked", place=place, problem=problem, fix=fix)
