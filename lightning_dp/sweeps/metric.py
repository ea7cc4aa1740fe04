"""Whether trials log the metric that their sweep judges by: asked of the parts, before the first charge."""

import difflib
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_dp.sweeps.sweep import Sweep
from lightning_dp.tracking.logged_metrics import LoggedMetrics, metrics_of_callback, metrics_of_module
from lightning_dp.tracking.run_folder import EPSILON_OF_TEST

_SHOWN = 30
_LIGHTNINGS_EVERY = 50  # steps from one line of the log to the next


def metrics_of_fit(*, module: LightningModule, data: LightningDataModule, config: Any) -> LoggedMetrics:
    """The names that a fit leaves in results.json and metrics.csv.

    Args:
        module, data: as the fit will have them, not opened.
        config: of the fit, its parts made: `trainer`, `run`, `privacy`.

    Raises:
        ValueError: the module does not say what it logs.
    """
    logged = metrics_of_module(module, data=data)
    own = module.configure_callbacks()
    chosen = config.trainer.callbacks or []
    given: list[Any] = [
        one for part in (chosen, own) for one in (part if isinstance(part, list | tuple) else [part])
    ]
    for callback in given:
        logged |= metrics_of_callback(callback, module=module, data=data)
    if config.privacy is not None:
        logged = logged.kept_private() | metrics_of_callback(config.privacy, module=module, data=data)
    logged |= LoggedMetrics(test=frozenset({EPSILON_OF_TEST}))
    trainer, none = config.trainer, frozenset[str]()
    written = trainer.logger is not False  # into metrics.csv
    often = not 0 < trainer.max_steps < (trainer.log_every_n_steps or _LIGHTNINGS_EVERY)
    return LoggedMetrics(
        train=logged.train if written and often else none,
        validation=logged.validation if written and trainer.limit_val_batches != 0 else none,
        test=logged.test if config.run.test and trainer.limit_test_batches != 0 else none,
    )


EVOLUTION = LoggedMetrics(
    train=frozenset({"privacy/epsilon", "privacy/steps", "evolution/degree", "evolution/survivors"})
)
"""What `lightning-dp evolve` writes into metrics.csv, a line for each vote."""


def check_metric(sweep: Sweep, *, logged: LoggedMetrics, program: str) -> None:
    """Raise ValueError unless trials log the sweep's metric, and in time for those that are stopped early.

    Args:
        sweep: of the trials.
        logged: by one of them.
        program: what a trial is, for the message.
    """
    if sweep.metric is None:
        return
    name, known = sweep.metric.name, logged.train | logged.validation | logged.test
    if name not in known:
        near = max(
            sorted(known), key=lambda other: difflib.SequenceMatcher(None, name, other).ratio(), default=None
        )
        names = sorted(known, key=lambda other: (other not in logged.test, other))
        shown = ", ".join(names[:_SHOWN]) + (" and others" if len(names) > _SHOWN else "")
        raise ValueError(
            f"metric.name is {name!r}, which no trial of {program} logs, so each would be charged and then "
            f"count as failed; "
            + (f"the nearest is {near!r} of {shown}" if near else "nothing at all is logged: see run.test")
        )
    if sweep.early_terminate is not None and name not in logged.train | logged.validation:
        early = ", ".join(sorted(logged.train | logged.validation)) or "nothing"
        raise ValueError(
            f"metric.name is {name!r}, which a trial of {program} logs at its end only, so early_terminate "
            f"would never stop one: judge by what is logged before ({early}), or leave early_terminate out"
        )
