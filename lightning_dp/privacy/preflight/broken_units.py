"""Whether a unit full of NaN, ∞ or 1e30 spoils more than its own, bounded contribution."""

import math
from typing import Any

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.preflight.clipped_sum import clipped, clipped_alone, usual_norm
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.gradient import Gradient, difference
from lightning_dp.privacy.preflight.step import StepFailed
from lightning_dp.privacy.preflight.trial import Trial

_BROKEN = 1
_OTHERS = ((0, 2), (2, 3))
_TOLERANCE = 1e-3


def find_spoilt_batches(trial: Trial) -> list[Finding]:
    """The clipped sum with a broken unit, less that of the others: bounded, whoever the others are."""
    bound = usual_norm(trial, _OTHERS[0])
    for value in (math.nan, math.inf, 1e30):
        units = trial.units.broken(_BROKEN, value=value)
        if units is None:
            return []
        rests = []
        for others in _OTHERS:
            batch = units.pick([others[0], _BROKEN, others[1]])
            try:
                total = clipped(trial, batch, num_units=3, max_grad_norm=bound)
            except (StepFailed, RuntimeError) as error:
                if _runs(trial, batch):
                    return [_selects(trial)]
                return [
                    Finding(
                        code="not-finite",
                        place="training_step",
                        problem=f"stops at a unit full of {value}, which shows that it is there ({error})",
                        fix="return a loss whatever the values: the clipper leaves out what is not finite",
                    )
                ]
            known = clipped_alone(trial, others, max_grad_norm=bound)
            rests.append(Gradient.sum([total, known], factors=[1.0, -1.0]))
        scale = [*rests, *(trial.alone(unit) for unit in _OTHERS[0])]
        within = all(rest.norm() <= bound * (1 + _TOLERANCE) for rest in rests)  # NaN is not
        if not within or difference(*rests, among=scale) is not None:
            return [
                Finding(
                    code="not-finite",
                    place="training_step",
                    problem=f"lets a unit full of {value} change what the others of its batch contribute",
                    fix="keep it out of other rows: torch.where instead of a product with a mask",
                )
            ]
    return []


def _runs(trial: Trial, batch: Any) -> bool:
    """Whether the step takes the batch where no engine looks at its layers."""
    try:
        trial.step.gradient(batch, draws=RowAlignedRandomness())
    except StepFailed:
        return False
    return True


def _selects(trial: Trial) -> Finding:
    return Finding(
        code="clipping",
        place="training_step",
        problem=(
            f"selects rows by their values (x[mask]), so a layer sees some of a batch's rows only, and "
            f"{type(trial.engine).__name__} can't tell whose they are"
        ),
        fix="run every branch on all rows, and choose between the results (torch.where)",
        can_be_accepted=False,
    )
