"""Preflight of a Lightning fit: the trainer, the module's layers, and its training_step on made-up units.

The step runs on copies of the module, which log nowhere and step nothing; see `privacy.preflight`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils.data import DataLoader

from lightning_dp.callbacks.loggers import find_outgoing_loggers
from lightning_dp.callbacks.made_up_units import Source, made_up_units
from lightning_dp.callbacks.monitors import find_private_monitors, find_private_schedules
from lightning_dp.callbacks.trainer_checks import check_automatic
from lightning_dp.callbacks.trial_batches import TrialBatch, moved, output_of, untouched
from lightning_dp.fit.facts import layer_rows_per_unit
from lightning_dp.lightning_internals import (
    as_written,
    combined_loader,
    compiler_of,
    configured_optimizers,
    datamodule_of,
    set_combined_loader,
)
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.draws import generators_put_back
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.preflight import (
    Accepted,
    Finding,
    Moment,
    TrainingStep,
    Trial,
    answered,
    find_in_layers,
    inspect_step,
    settle,
)
from lightning_dp.privacy.preflight.copies import copied as copy_of
from lightning_dp.privacy.row_losses import mean_loss


def nowhere(*_: Any, **__: Any) -> None:
    """In place of what would print."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What preflight found.

    Attributes:
        findings: everything that would break the guarantee, accepted or not.
        trial: of the step; None where none could be made.
    """

    findings: list[Finding]
    trial: Trial | None


def run_preflight(
    trainer: Trainer,
    module: LightningModule,
    *,
    loader: DataLoader[Any],
    plan: PrivacyPlan,
    engine: ClippingEngine,
    function: ClippingFunction,
    accept: Mapping[str, str],
    synthetic_items: Source | None = None,
    synthetic_units: Source | None = None,
    then: Callable[[Trial], None] = nowhere,
) -> list[Accepted]:
    """Refuse a fit whose guarantee something would break; see `look`, which takes the same arguments.

    Args:
        then: called with the trial of a step that was not refused.

    Returns:
        The findings that `accept` answers for, to be written into the ledger and the privacy report.

    Raises:
        ValueError: all other findings, in one message.
    """
    seen = look(
        trainer,
        module,
        loader=loader,
        plan=plan,
        engine=engine,
        function=function,
        accept=accept,
        synthetic_items=synthetic_items,
        synthetic_units=synthetic_units,
    )
    accepted = settle(seen.findings, accept=accept)
    if seen.trial is not None:
        with undisturbed(trainer):
            then(seen.trial)
    return accepted


def refuse_all(
    sentences: Sequence[str], trainer: Trainer, module: LightningModule, *, accept: Mapping[str, str]
) -> None:
    """Raise one ValueError for the settings of a fit that can't be, with what can be told of others already.

    Args:
        sentences: about settings that can't be; nothing is raised where there are none.
        trainer: whose callbacks and schedules may go by private metrics.
        module: of the fit.
        accept: code → reason.
    """
    if not sentences:
        return
    found = find_private_monitors(trainer, training_metrics=())
    with suppress(Exception), undisturbed(trainer):  # optimizers may need more of a fit than there is
        again = copy_of(module, keep=tuple(filter(None, (trainer, datamodule_of(trainer)))))
        found += find_private_schedules(trainer, configured_optimizers(again)[1])
    _, left = answered(found, accept=accept)
    raise ValueError("\n".join([*sentences, *map(str, left)]))


def look(
    trainer: Trainer,
    module: LightningModule,
    *,
    loader: DataLoader[Any],
    plan: PrivacyPlan,
    engine: ClippingEngine,
    function: ClippingFunction,
    accept: Mapping[str, str],
    synthetic_items: Source | None = None,
    synthetic_units: Source | None = None,
) -> Preflight:
    """Find what would break the guarantee of this fit, without reading a private row.

    To be called in a callback's `setup`: Lightning calls it before the module's own `setup` and
    `configure_model`, so both are called on the copy. Leaves no trace in module, trainer, loggers or random
    generators. Memory: the module once more, and about ten of its gradients.

    Args:
        trainer: of the fit.
        module: on any device, in the mode it trains in.
        loader: the train loader as the user gave it; only shapes and dtypes of its data set are looked at.
        plan: the plan of the fit.
        engine: the fit's, not attached; left so.
        function: the fit's.
        accept: code → reason, for findings that are harmless here.
        synthetic_items: from a number to as many made-up items of the data set.
        synthetic_units: from a number to a collated batch of as many made-up units.
    """
    trial: Trial | None = None
    names: set[str] = set()
    found = _find_in_plan(plan)
    with undisturbed(trainer) as stopped, untouched(module) as written:
        try:
            copied = _copy(trainer, module, loader=loader, names=names)
        except Exception as error:
            if _is_our_sentence(error):
                raise
            found += [*find_in_layers(module), _not_copied(module, error)]
        else:
            check_automatic(copied)  # setup may have changed that
            layers = find_in_layers(copied)
            found += layers
            # What such a layer does to a step is known; a second message about it would only be longer.
            if all(finding.code in accept for finding in layers):
                units, untold = made_up_units(
                    trainer,
                    loader,
                    rows_per_unit=plan.unit.rows_per_unit,
                    synthetic_items=synthetic_items,
                    synthetic_units=synthetic_units,
                )
                found += untold
                if units is not None:
                    rows = layer_rows_per_unit(plan.unit.rows_per_unit, copied)
                    step = _step(trainer, copied, original=module, loader=loader, plan=plan)
                    trial = Trial(
                        step=step, units=units, rows_per_unit=rows, engine=engine, function=function
                    )
                    found += inspect_step(trial)
    found += find_private_monitors(trainer, training_metrics=names, stopped=bool(stopped))
    found += find_outgoing_loggers(trainer)
    found += [
        Finding(
            code="remembers",
            place=f"'{name}'",
            problem="was written while only copies ran: a hook or closure holds the module itself",
            fix="register methods of the module as hooks, and keep no statistics of the data",
        )
        for name in written
    ]
    return Preflight(findings=found, trial=trial)


def _find_in_plan(plan: PrivacyPlan) -> list[Finding]:
    if plan.delta <= 1 / plan.unit.num_units:
        return []
    return [
        Finding(
            code="delta",
            place="privacy.delta",
            problem=(
                f"is {plan.delta}, above 1 / {plan.unit.num_units} units: such a guarantee allows publishing "
                "one unit outright"
            ),
            fix=f"take one below {1 / plan.unit.num_units:.1g}",
        )
    ]


def _step(
    trainer: Trainer,
    copied: LightningModule,
    *,
    original: LightningModule,
    loader: DataLoader[Any],
    plan: PrivacyPlan,
) -> TrainingStep:
    kept = shared_by_copies(trainer, copied, loader)
    batches = TrialBatch(trainer, original=original, keep=kept)
    return TrainingStep(
        copied,
        loss=lambda again, rows: _loss(trainer, cast(LightningModule, again), rows),
        device=trainer.strategy.root_device,
        keep=kept,
        train=lambda again, rows: batches(cast(LightningModule, again), rows),
        moments=_moments(trainer, plan),
    )


def _moments(trainer: Trainer, plan: PrivacyPlan) -> list[Moment]:
    """The first steps, the middle and the last one, with their epochs."""
    last = plan.num_steps - 1
    steps_per_epoch = max(1, round(1 / plan.sampling_rate))
    return [
        Moment(
            name=f"at global_step {step}",
            lived=partial(_at, trainer, step=step, epoch=step // steps_per_epoch),
        )
        for step in sorted({min(step, last) for step in (0, 1, plan.num_steps // 2, last)})
    ]


@contextmanager
def _at(trainer: Trainer, *, step: int, epoch: int) -> Iterator[None]:
    """Lightning's counters as they will be when that many steps were taken."""
    loop = trainer.fit_loop
    steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    epochs: Any = loop.epoch_progress.current  # typed as a tracker with fewer stages than it has
    before = steps.completed, epochs.processed, epochs.completed
    steps.completed, epochs.processed, epochs.completed = step, epoch, epoch
    try:
        yield
    finally:
        steps.completed, epochs.processed, epochs.completed = before


def shared_by_copies(trainer: Trainer, module: LightningModule, loader: DataLoader[Any]) -> tuple[Any, ...]:
    """What a module may refer to and copies must not copy: above all the data."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    everything = (
        trainer,
        datamodule_of(trainer),
        loader,
        loader.dataset,
        compiler_of(module),
        *callbacks,
        *trainer.loggers,
    )
    return tuple(one for one in everything if one is not None)


def _copy(
    trainer: Trainer, module: LightningModule, *, loader: DataLoader[Any], names: set[str]
) -> LightningModule:
    """A copy that is set up as Lightning would, and logs nowhere; `names` gets the names that it logs."""
    copied = copy_of(module, keep=shared_by_copies(trainer, module, loader), with_weights=True)
    as_written(copied)
    copied.trainer = trainer
    if is_overridden("setup", copied):
        copied.setup("fit")
    if is_overridden("configure_model", copied):
        copied.configure_model()
    if trainer.precision == "64-true":
        copied.double()

    def log(name: str, *_: Any, **__: Any) -> None:
        names.add(name)

    def log_dict(dictionary: Mapping[str, Any], *_: Any, **__: Any) -> None:
        names.update(dictionary)

    for child in copied.modules():
        if isinstance(child, LightningModule):
            child.log, child.log_dict, child.print = log, log_dict, nowhere  # type: ignore[method-assign, assignment]
    return copied


def silent(module: nn.Module) -> nn.Module:
    """Logs nowhere, prints nowhere, and runs as it is written."""
    for child in module.modules():
        if not isinstance(child, LightningModule):
            continue
        child.log, child.log_dict, child.print = nowhere, nowhere, nowhere  # type: ignore[method-assign]
        as_written(child)
    return module


def _is_our_sentence(error: Exception) -> bool:
    """Whether a part of this package refuses its settings: a mistake to mend, and nothing to answer for."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, ValueError) and raised_in.startswith("lightning_dp.")


def _not_copied(module: LightningModule, error: Exception) -> Finding:
    return Finding(
        code="unchecked",
        place=type(module).__name__,
        problem=f"can't be copied and set up, so nothing could be tried on made-up units: {error!r}",
        fix="keep what can't be copied out of the module, or define __deepcopy__ for it",
    )


def _loss(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """What Lightning does with a batch up to the loss, for a copy of the module."""
    module.trainer = trainer
    # There are none yet; a step may look up its learning rate.
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    module.optimizers = lambda *_, **__: optimizer  # type: ignore[method-assign, assignment]
    module.lr_schedulers = lambda *_: schedule  # type: ignore[method-assign]
    return mean_loss(output_of(trainer, module, moved(trainer, module, batch)))


@contextmanager
def undisturbed(trainer: Trainer, *, seed: int | None = 0) -> Iterator[list[str]]:
    """Trainer and random generators as they were afterwards; loggers that hear nothing.

    Yields:
        A list that is not empty afterwards if something asked the trainer to stop.
    """
    loggers, should_stop = trainer.loggers, trainer.should_stop
    trainer.loggers, loaders = [DummyLogger()], combined_loader(trainer)
    trainer.save_checkpoint = nowhere  # type: ignore[method-assign]
    stopped: list[str] = []
    accumulated = trainer.accumulate_grad_batches
    settings = [
        (group, {name: value for name, value in group.items() if name != "params"})
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
    ]
    try:
        with generators_put_back(trainer.strategy.root_device, seed=seed):
            yield stopped
    finally:
        del trainer.save_checkpoint
        trainer.accumulate_grad_batches = accumulated
        for group, before in settings:
            group.update(before)
        if trainer.should_stop and not should_stop:
            stopped.append("should_stop")
        trainer.loggers, trainer.should_stop = loggers, should_stop
        # A module's setup may ask for the number of steps, upon which Lightning settles on its loaders.
        set_combined_loader(trainer, loaders)
