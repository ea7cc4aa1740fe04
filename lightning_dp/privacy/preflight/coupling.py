"""Whether a unit contributes the same whoever else is in the batch.

The gradient of a batch must be the mean of its units' gradients, each computed in a batch of its own with
the same random numbers. Values are taken twice: as they are, and with gaps, as normalisers that count what
is there are alike while nothing is missing. Steps that draw random numbers are also tried with ordinary
draws, in batches of one size: replacing half of the units must have the same effect whatever the other
half is. Without that second look a mix of units at random could line up with itself. Values and times that
made-up units don't show by themselves are in `rounds`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_dp.privacy.clipping.trees import tensors
from lightning_dp.privacy.draws import Draws, RecordedRandomness, RowAlignedRandomness
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.gradient import Gradient, difference
from lightning_dp.privacy.preflight.made_up import MadeUp, Uncollated, row_of_first
from lightning_dp.privacy.preflight.step import Moment, StepFailed, collated
from lightning_dp.privacy.preflight.trial import Trial

_TRIED = (0, 1, 2)
_HALVES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))
_ROUNDING = 5e-6
"""Share of a loss: sums over batches of other sizes round differently. Small, as gradients decide."""


def find_coupling(trial: Trial) -> list[Finding]:
    """Units that see each other, in the forward pass or in the loss; losses that are no mean."""
    draws = RowAlignedRandomness()
    together = trial.step.gradient(trial.units.pick(_TRIED), draws=draws)
    alone = [trial.alone(unit) for unit in _TRIED]
    found: list[Finding] | None = _compare(trial, trial.units, together, alone)
    if found:
        return found
    floats = trial.units.num_floats
    for only in (None, *range(floats)) if floats > 1 else (None,) * floats:
        found = _with_gaps(trial, trial.units.with_gaps(only))
        if found is not None:
            break
    return found or (_at_random(trial) if draws.log else [])


def couples(trial: Trial, units: MadeUp, chosen: Sequence[int], *, when: str) -> list[Finding] | None:
    """Whether the loss of some units is the mean of the losses of two parts of them.

    A third of what gradients cost; where it is not, gradients have the last word, as a constant does no harm.

    Args:
        chosen: three units or more; every second one is in the second part.
        when: for the message, such as "at global_step 1".

    Returns:
        None where the step gives no finite loss for them.
    """
    step, parts = trial.step, (chosen, chosen[::2], chosen[1::2])
    losses = []
    for part in parts[1:] + parts[:1]:
        losses.append(step.value(units.pick(part), draws=RowAlignedRandomness()))
        if not abs(losses[-1]) < float("inf"):
            return None
    first, second, whole = losses
    mean = (first * len(parts[1]) + second * len(parts[2])) / len(chosen)
    if abs(whole - mean) <= _ROUNDING * max(map(abs, losses)):
        return []
    try:
        gradients = [step.gradient(units.pick(part), draws=RowAlignedRandomness()) for part in parts]
    except StepFailed:
        return None
    shares = [len(part) / len(chosen) for part in parts[1:]]
    where = difference(gradients[0], Gradient.sum(gradients[1:], factors=shares), among=gradients)
    if where is None:
        return []
    if trial.step.foreign:
        return [_foreign(trial)]
    if _is_rounding(trial, [units.pick(part) for part in parts], shares=shares, when=step.moment):
        return []
    others = [unit for unit in range(units.num_units) if unit not in chosen[:3]]
    batches = [units.pick(chosen[:3]), units.pick([chosen[0], *others[:2]])]
    return [_coupled(trial, where, batches, num_units=3, draws=RowAlignedRandomness, when=when)]


def _is_rounding(trial: Trial, batches: Sequence[Any], *, shares: Sequence[float], when: Moment) -> bool:
    """Whether the first batch's gradient is the mean of the others' once all is computed in fp64.

    Units that see each other do so in any precision. What an unbounded net makes of large values may be so
    steep that batches of other sizes, whose sums fp32 rounds differently, get other gradients. A step that
    can't run in fp64 proves nothing.
    """
    try:
        exact = trial.step.in_double()
        with exact.at(when):
            gradients = [exact.gradient(batch, draws=RowAlignedRandomness()) for batch in batches]
    except (StepFailed, TypeError):  # TypeError: a device without fp64
        return False
    if exact.foreign or not all(gradient.is_finite for gradient in gradients):
        return False
    mean = Gradient.sum(gradients[1:], factors=shares)
    return difference(gradients[0], mean, among=gradients) is None


def _with_gaps(trial: Trial, gaps: MadeUp) -> list[Finding] | None:
    """None where the step can't do with missing values at all: what those do is another check's."""
    alone = []
    try:
        for unit in _TRIED:
            alone.append(trial.step.gradient(gaps.pick([unit]), draws=RowAlignedRandomness()))
            if not alone[-1].is_finite:
                return None
        together = trial.step.gradient(gaps.pick(_TRIED), draws=RowAlignedRandomness())
    except StepFailed:
        return None
    return _compare(trial, gaps, together, alone)


def _compare(trial: Trial, units: MadeUp, together: Gradient, alone: Sequence[Gradient]) -> list[Finding]:
    mean = Gradient.sum(alone, factors=[1 / len(alone)] * len(alone))
    where = difference(together, mean, among=alone)
    if where is None:
        return []
    if trial.step.foreign:
        return [_foreign(trial)]
    square = mean.dot(mean)
    factor = mean.dot(together) / square if square else 1.0
    scaled = Gradient.sum([mean], factors=[factor])
    if abs(factor - 1) > 1e-2 and difference(together, scaled, among=[*alone, scaled]) is None:
        return [
            Finding(
                code="not-a-mean",
                place="training_step",
                problem=(
                    f"returns {factor:.3g} times the mean over the units of a batch of {len(alone)}, so what "
                    "a unit counts for depends on the size of the batch, which is private"
                ),
                fix="return the mean of per-row losses",
                among_units=True,
            )
        ]
    batches = [units.pick(_TRIED), units.pick([0, 3, 4])]
    return [_coupled(trial, where, batches, num_units=3, draws=RowAlignedRandomness)]


def _foreign(trial: Trial) -> Finding:
    return Finding(
        code="unchecked",
        place="training_step",
        problem=(
            "draws random numbers that can't be repeated for one unit "
            f"({', '.join(sorted(trial.step.foreign))}), so nobody knows whether units see each other"
        ),
        fix="draw with torch",
    )


def _at_random(trial: Trial) -> list[Finding]:
    batches = [
        trial.units.pick([*_HALVES[first], *_HALVES[second]])
        for first, second in ((0, 1), (2, 3), (0, 3), (2, 1))
    ]
    runs = [RecordedRandomness(seed=1) for _ in batches]
    losses = [trial.step.value(batch, draws=run) for batch, run in zip(batches, runs, strict=True)]
    if any(run.log != runs[0].log for run in runs):
        return []  # how much is drawn depends on the data, so the same seed isn't the same draw
    if abs(losses[0] + losses[1] - losses[2] - losses[3]) <= _ROUNDING * max(map(abs, losses)):
        return []
    gradients = [trial.step.gradient(batch, draws=RecordedRandomness(seed=1)) for batch in batches]
    same, crossed = (Gradient.sum(pair, factors=[1.0, 1.0]) for pair in (gradients[:2], gradients[2:]))
    where = difference(same, crossed, among=gradients)
    if where is None:
        return []
    pair = [batches[0], batches[2]]
    return [_coupled(trial, where, pair, num_units=6, draws=lambda: RecordedRandomness(seed=1))]


def _coupled(
    trial: Trial,
    where: str,
    batches: Sequence[Any],
    *,
    num_units: int,
    draws: Callable[[], Draws],
    when: str = "",
) -> Finding:
    """`batches` have unit 0 in common."""
    place, fix = (
        "training_step",
        (
            "compute every row from itself alone, with normalisers, masks and weights from the row or from "
            "constants, and return one loss a row instead of their mean"
        ),
    )
    if not _collates_alike(trial, batches[0], num_units=num_units, draws=draws()):
        place, fix = (
            "collate_fn",
            ("make every row from its item alone: pad to a constant length and move statistics out of it"),
        )
    else:
        notes = [_notes(trial, batch, num_units=num_units, draws=draws()) for batch in batches]
        if layer := _mixing_layer(*notes):
            place = f"'{layer}'"
    return Finding(
        code="coupling",
        place=place,
        problem=(
            f"makes what one unit contributes (to '{where}', for one) depend on the other units of its "
            f"batch{when and f' {when}'}, so clipping does not bound what one unit changes"
        ),
        fix=fix,
        among_units=True,
    )


def _collates_alike(trial: Trial, batch: Any, *, num_units: int, draws: Draws) -> bool:
    """Whether the first item's rows are the same without the others."""
    if not isinstance(batch, Uncollated):
        return True
    alone = Uncollated(items=batch.items[:1], collate=batch.collate)
    with trial.step.running(draws):
        whole = row_of_first(collated(batch), num_units=num_units)
        single = row_of_first(collated(alone), num_units=1)
    return _equal(whole, single)


_Note = tuple[str, list[Tensor], list[Tensor]]


def _mixing_layer(left: Sequence[_Note], right: Sequence[_Note]) -> str | None:
    """The first module whose input is the same for unit 0 in both batches and whose output is not."""
    for (path, given, made), (other, given_too, made_too) in zip(left, right, strict=False):
        if path != other:
            return None
        if _equal(given, given_too) and not _equal(made, made_too):
            return path
    return None


def _notes(trial: Trial, batch: Any, *, num_units: int, draws: Draws) -> list[_Note]:
    """(path, unit 0's inputs, unit 0's outputs) of every call, in the order in which calls return."""
    module, notes = trial.step.copy(), list[_Note]()

    def own(tree: Any) -> list[Tensor]:
        whole = [t for t in tensors(tree) if t.ndim and len(t) and len(t) % num_units == 0]
        return [t.detach()[: len(t) // num_units].clone() for t in whole]

    def listen(path: str, child: nn.Module) -> None:
        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            notes.append((path, own((args, kwargs)), own(output)))

        child.register_forward_hook(after, with_kwargs=True)

    for path, child in module.named_modules():
        if path:
            listen(path, child)
    with trial.step.running(draws):
        trial.step.loss(module, batch)
    return notes


def _equal(left: list[Tensor], right: list[Tensor]) -> bool:
    if len(left) != len(right):
        return False
    for one, other in zip(left, right, strict=True):
        if one.shape != other.shape:
            return False
        size = float(one.double().abs().nan_to_num(0, 0, 0).max()) if one.numel() else 0.0
        if not one.double().allclose(other.double(), rtol=1e-4, atol=1e-5 * size, equal_nan=True):
            return False
    return True
