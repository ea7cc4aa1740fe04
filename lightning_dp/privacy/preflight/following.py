"""Whether each unit can be followed from the batch to the loss, operator by operator, apart from all others.

No values and no lengths are compared (`privacy.rows`). What is found about every use of a parameter, where
its units are, is what the clipping engine goes by in training.
"""

from contextlib import suppress

from lightning_dp.privacy.batch_layout import BatchLayout, NoLayout
from lightning_dp.privacy.preflight.explained import explained
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.step import StepFailed, collated
from lightning_dp.privacy.preflight.trial import Trial
from lightning_dp.privacy.rows import UnitsMixed

_EXAMPLES = (1, 2, 3)


def learn_layout(trial: Trial) -> None:
    """Tell the engine how batches are cut into units, as far as made-up ones show it."""
    trial.engine.know(trial.sites)
    with suppress(NoLayout, StepFailed):
        trial.sites.layout = _layout(trial)


def _layout(trial: Trial) -> BatchLayout:
    return BatchLayout.of({n: collated(trial.units.pick(range(n))) for n in _EXAMPLES})


def find_unfollowed(trial: Trial) -> list[Finding]:
    """Units that are mixed or can't be followed, at all moments of training; the engine knows the rest."""
    try:
        layout = _layout(trial)
    except NoLayout as error:
        return [
            _finding(
                "unchecked",
                "the batch",
                f"can't be cut into units, as {error}",
                "let collate_fn give tensors with as many entries for each unit, padded to a fixed size",
            )
        ]
    batch = layout.first(collated(trial.units.pick([0])), num_units=1)
    start = trial.step.moments[0]
    for moment in trial.step.moments:
        with trial.step.at(moment):
            try:
                trial.sites.join(trial.step.follow(batch))
            except UnitsMixed as error:
                with suppress(Exception):  # of use only if somebody answers for it
                    trial.sites.join(trial.step.follow(batch, mixing=True))
                trial.engine.know(trial.sites)
                return [
                    _finding(
                        "coupling",
                        f"training_step, {error.place}:",
                        f"{error.what}, so what one unit contributes may depend on others of its batch",
                        "compute every row from itself alone, and return one loss a row",
                    )
                ]
            except RuntimeError as error:
                if moment is not start:
                    continue
                place, problem, fix = explained(
                    trial.step.module, str(error), engine=type(trial.engine).__name__
                )
                return [_finding("clipping", place, problem, fix)]
            except Exception as error:
                if moment is not start:
                    continue  # what hooks of earlier steps leave on the module is not there in a trial
                return [
                    _finding(
                        "clipping",
                        type(trial.step.module).__name__,
                        f"can't be followed from the batch to the loss ({type(error).__name__}: "
                        f"{' '.join(str(error).split())[:300]})",
                        "put that part of the step into a module of its own, which is then run unit by unit",
                    )
                ]
    trial.engine.know(trial.sites)
    return []


def _finding(code: str, place: str, problem: str, fix: str) -> Finding:
    return Finding(
        code=code,
        place=place,
        problem=problem,
        fix=fix,
        can_be_accepted=code not in ("clipping", "unchecked"),
        among_units=True,
    )
