"""Whether the clipping engine gives this model's clipped sum: against one backward per unit.

Tried with batches of three and four units and, where a table in the model is as long as a small batch has
rows, with a batch of that size too: that is where rows and tables can be taken for each other.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.trees import tensors
from lightning_dp.privacy.draws import Draws, RecordedRandomness, RowAlignedRandomness
from lightning_dp.privacy.preflight.explained import explained
from lightning_dp.privacy.preflight.finding import Finding
from lightning_dp.privacy.preflight.gradient import Gradient, difference
from lightning_dp.privacy.preflight.step import StepFailed
from lightning_dp.privacy.preflight.trial import NUM_UNITS, Trial

_SIZES = (3, 4)
_NO_BOUND = 1e12


def find_wrong_sums(trial: Trial) -> list[Finding]:
    """Models that the engine can't clip per unit, or clips wrongly; rows that aren't those of units."""
    try:
        trial.function.partition([n for n, p in trial.step.module.named_parameters() if p.requires_grad])
    except ValueError as error:
        return [
            Finding(
                code="clipping",
                place="privacy.clipping_function",
                problem=f"does not fit the model: {error}",
                fix="name its parameters as they are",
                can_be_accepted=False,
            )
        ]
    for size in [*_SIZES, *_lengths_of_tables(trial)] if trial.units_meet else [1]:
        found = _try(trial, list(range(size)))
        if found:
            return found
    return _at_random(trial) if trial.units_meet else []


def clipped_alone(trial: Trial, units: Sequence[int], *, max_grad_norm: float) -> Gradient:
    """Σ clip(g) over units, from the gradients of units alone."""
    names = [name for name, parameter in trial.step.module.named_parameters() if parameter.requires_grad]
    group_of = dict(zip(names, trial.function.partition(names), strict=True))
    gradients = [trial.alone(unit) for unit in units]
    squares = torch.zeros(len(units), max(group_of.values()) + 1, dtype=torch.float64)
    for row, gradient in enumerate(gradients):
        for name in gradient.values:
            squares[row, group_of[name]] += gradient.norm(name) ** 2
    factors = trial.function.factors(squares.sqrt().float(), max_grad_norm=max_grad_norm)
    clipped = [
        Gradient({name: value * factors[row, group_of[name]] for name, value in gradient.values.items()})
        for row, gradient in enumerate(gradients)
    ]
    return Gradient.sum(clipped, factors=[1.0] * len(clipped))


def usual_norm(trial: Trial, units: Sequence[int]) -> float:
    """A bound that clips about half of the units."""
    return statistics.median(trial.alone(unit).norm() for unit in units) or 1.0


def clipped(trial: Trial, batch: Any, *, num_units: int, max_grad_norm: float) -> Gradient:
    """What the engine gives."""
    return trial.step.clipped(
        batch,
        num_units=num_units,
        rows_per_unit=trial.rows_per_unit,
        engine=trial.engine,
        function=trial.function,
        max_grad_norm=max_grad_norm,
        draws=RowAlignedRandomness(),
    )


def _unclipped(trial: Trial, batch: Any, *, num_units: int, draws: Draws) -> Gradient:
    """Σ g over units by the engine."""
    return trial.step.clipped(
        batch,
        num_units=num_units,
        rows_per_unit=trial.rows_per_unit,
        engine=trial.engine,
        function=Flat(),
        max_grad_norm=_NO_BOUND,
        draws=draws,
    )


def _try(trial: Trial, units: list[int]) -> list[Finding]:
    bound = usual_norm(trial, units)
    expected = clipped_alone(trial, units, max_grad_norm=bound)
    batch = trial.units.pick(units)
    try:
        found = clipped(trial, batch, num_units=len(units), max_grad_norm=bound)
    except (RuntimeError, ValueError, StepFailed) as error:
        return [refused(trial, error)]
    where = difference(found, expected, among=[trial.alone(unit) for unit in units])
    if where is None:
        return []
    name = type(trial.engine).__name__
    if trial.rows_per_unit > 1:
        whole = _unclipped(trial, batch, num_units=len(units), draws=RowAlignedRandomness())
        alone = [trial.alone(unit) for unit in units]
        if difference(whole, Gradient.sum(alone, factors=[1.0] * len(alone)), among=alone) is None:
            return [
                Finding(
                    code="rows-per-unit",
                    place="training_step",
                    problem=(
                        f"does not keep the {trial.rows_per_unit} rows of a unit beside each other, so "
                        f"{name} clips mixtures of units"
                    ),
                    fix="order rows by unit: repeat_interleave(k, dim=0) instead of repeat(k, …)",
                    among_units=True,
                )
            ]
    return [_wrong(trial, where, f"the clipped sum of one backward per unit ({len(units)} units)")]


def _at_random(trial: Trial) -> list[Finding]:
    """With ordinary draws: an engine that runs layers again must not draw again."""
    size, draws = _SIZES[0], RecordedRandomness(seed=2)
    batch = trial.units.pick(range(size))
    mean = trial.step.gradient(batch, draws=draws)
    if not draws.log:
        return []
    try:
        total = _unclipped(trial, batch, num_units=size, draws=RecordedRandomness(seed=2))
    except (RuntimeError, ValueError, StepFailed) as error:
        return [refused(trial, error)]
    expected = Gradient.sum([mean], factors=[float(size)])
    where = difference(total, expected, among=[expected])
    return [] if where is None else [_wrong(trial, where, "the gradient of the loss that was drawn")]


def _wrong(trial: Trial, where: str, instead_of: str) -> Finding:
    return Finding(
        code="clipping",
        place=f"'{where}'",
        problem=f"gets something else from {type(trial.engine).__name__} than {instead_of}",
        fix="set another privacy.clipping_engine, build the layer from torch.nn's, or freeze it",
        among_units=True,
    )


def refused(trial: Trial, error: BaseException) -> Finding:
    """What an engine that raised had to say, in one sentence; training would stop there too."""
    measured = _rows_of_layers(trial)
    if measured is not None and measured[1] != trial.rows_per_unit:
        path, rows = measured
        return Finding(
            code="rows-per-unit",
            place=f"'{path}'",
            problem=(
                f"gets {rows} row(s) a unit where the unit's rows_per_unit times the module's "
                f"rows_per_example makes {trial.rows_per_unit}"
            ),
            fix=(
                f"pass it (B, T, …) instead of (B·T, …) if those are steps of one row; else set the unit's "
                f"rows_per_unit, or rows_per_example = {rows} if every layer gets as many"
            ),
            can_be_accepted=False,
            among_units=True,
        )
    if isinstance(error, StepFailed) and error.__cause__ is not None:  # without an engine it runs
        error = error.__cause__
    place, problem, fix = explained(trial.step.module, str(error), engine=type(trial.engine).__name__)
    return Finding(
        code="clipping",
        place=place,
        problem=problem,
        fix=fix,
        can_be_accepted=False,
        among_units=trial.units_meet,
    )


def _rows_of_layers(trial: Trial) -> tuple[str, int] | None:
    """The first trainable layer whose input has a fixed number of rows a unit, and that number."""
    lengths: list[list[tuple[str, int]]] = []
    for size in _SIZES:
        module, found = trial.step.copy(), list[tuple[str, int]]()

        def listen(path: str, child: nn.Module, found: list[tuple[str, int]] = found) -> None:
            def before(_: nn.Module, args: Any, kwargs: Any) -> None:
                found.extend((path, len(t)) for t in tensors((args, kwargs)) if t.ndim > 1)

            child.register_forward_pre_hook(before, with_kwargs=True)

        for path, child in module.named_modules():
            if any(p.requires_grad for p in child.parameters(recurse=False)):
                listen(path, child)
        with trial.step.running(RowAlignedRandomness()):
            trial.step.loss(module, trial.units.pick(range(size)))
        lengths.append(found)
    for (path, first), (other, second) in zip(*lengths, strict=False):
        per_unit, rest = divmod(first, _SIZES[0])
        if path == other and not rest and second == per_unit * _SIZES[1]:
            return path, per_unit
    return None


def _lengths_of_tables(trial: Trial) -> list[int]:
    """Up to two numbers of units whose rows are as many as a table in the model has entries."""
    rows, tables = trial.rows_per_unit, []
    for child in trial.step.module.modules():
        # Of torch's own layers the engines know which tensor is a weight; positions are an Embedding's.
        if not type(child).__module__.startswith("torch.nn.") or isinstance(child, nn.Embedding):
            tables += [*child.buffers(recurse=False), *child.parameters(recurse=False)]
    lengths = [len(table) for table in tables if table.ndim > 1]
    sizes = dict.fromkeys(length // rows for length in lengths if length % rows == 0)
    return [size for size in sizes if 1 < size < NUM_UNITS and size not in _SIZES][:2]
