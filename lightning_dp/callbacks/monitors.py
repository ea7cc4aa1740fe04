"""Who chooses or steers by a metric of private rows: no ε covers such a choice.

A metric counts as public if it is one of `privacy/…`, `step`, `epoch` or `global_step`, or if the data module
declares `validation_is_public = True`, the name says that it is of validation, and training_step does not
log it. Everything else counts as private: names of metrics don't tell more.
"""

import re
from collections.abc import Collection, Iterable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.privacy.preflight import Finding
from lightning_dp.protocols import PublicValidation, provides

_COUNTERS = frozenset({"step", "epoch", "global_step"})
_OF_VALIDATION = re.compile(r"(^|[/_.\-])(val|valid|validation)([/_.\-]|$)")
_FIX = (
    "remove it, or monitor a metric of public rows (a data module whose validation rows are public says "
    "validation_is_public = True)"
)


def find_private_monitors(
    trainer: Trainer, *, training_metrics: Collection[str], stopped: bool = False
) -> list[Finding]:
    """Callbacks that stop, select or name by a private metric; a training step that stops by itself.

    Args:
        trainer: its callbacks are looked at.
        training_metrics: names that training_step logs.
        stopped: whether the trial of a step set `trainer.should_stop`.
    """
    found = []
    if stopped:
        found.append(
            Finding(
                code="private-monitor",
                place="training_step or one of its hooks",
                problem="sets trainer.should_stop: the last step tells of its data, and no ε covers that",
                fix="remove it, and set trainer.max_steps",
            )
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and _is_private(monitor, trainer, training_metrics):
            kept = f" to keep {callback.save_top_k}" if isinstance(callback, ModelCheckpoint) else ""
            found.append(
                Finding(
                    code="private-monitor",
                    place=f"trainer.callbacks: {name}.monitor",
                    problem=f"is '{monitor}'{kept}: no ε covers a choice by a metric of private rows",
                    fix=_FIX,
                )
            )
        if isinstance(callback, ModelCheckpoint):
            named = re.findall(r"{([^}:]+)", str(callback.filename or ""))
            found += [
                Finding(
                    code="private-monitor",
                    place=f"trainer.callbacks: {name}.filename",
                    problem=f"is '{callback.filename}': it publishes '{metric}', a metric of private rows",
                    fix="take it out of the name",
                )
                for metric in named
                if _is_private(metric, trainer, training_metrics)
            ]
    return found


def find_private_schedules(trainer: Trainer, configs: Iterable[LRSchedulerConfig]) -> list[Finding]:
    """Learning-rate schedules that are fed by a private metric; known once optimizers are."""
    found = []
    for config in configs:
        if not (config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau)):
            continue
        if config.monitor is None or _is_private(config.monitor, trainer, ()):
            found.append(
                Finding(
                    code="private-monitor",
                    place=f"configure_optimizers: {type(config.scheduler).__name__}",
                    problem=f"feeds '{config.monitor}', a private metric, back into training",
                    fix="use a schedule that is fixed before, or a metric of public rows",
                )
            )
    return found


def stopped_by_hand(trainer: Trainer) -> bool:
    """Whether somebody set `trainer.should_stop` who has no public reason: neither the time nor a metric that
    preflight looked at."""
    if not trainer.should_stop:
        return False
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (
            isinstance(callback, EarlyStopping)
            and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED
        ):
            return False
        if isinstance(callback, Timer) and _is_over(callback):
            return False
    return True


def refuse_a_stop_by_hand(trainer: Trainer, *, accept: Collection[str], expected: bool) -> None:
    """Raise RuntimeError if a private fit is about to stop for a reason that may be private.

    Args:
        trainer: of the fit.
        accept: codes of findings that the user answers for.
        expected: whether the fit stops because its budget is used up.
    """
    if not expected and "private-monitor" not in accept and stopped_by_hand(trainer):
        raise RuntimeError(
            "trainer.should_stop was set by neither a limit nor a callback with a public metric, and no "
            "ε covers a choice by private numbers: set trainer.max_steps or max_time, use EarlyStopping "
            "on a metric of public rows, or say in privacy.accept.private-monitor by what public fact it "
            "stops"
        )


def _is_over(timer: Timer) -> bool:
    left = timer.time_remaining()
    return left is not None and left <= 0


def _is_private(metric: str, trainer: Trainer, training_metrics: Collection[str]) -> bool:
    if metric in _COUNTERS or metric.startswith("privacy/"):
        return False
    own = metric.removesuffix("_step").removesuffix("_epoch")
    data = datamodule_of(trainer)
    public = provides(data, PublicValidation) and data.validation_is_public
    return not (
        public
        and _OF_VALIDATION.search(metric)
        and metric not in training_metrics
        and own not in training_metrics
    )
