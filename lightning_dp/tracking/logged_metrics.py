"""What a fit says beforehand of the names it will log, so that nothing waits for one that never comes.

A module says it by a method `logged_metrics(data)`, a callback by `logged_metrics(module, data)`; either
returns a `LoggedMetrics`. Names are promised, not guessed: one that is logged only where the rows allow it is
left out.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule

from lightning_dp.protocols import CallbackLogs, LoggedMetrics, ModuleLogs, provides

__all__ = ["LoggedMetrics", "metrics_of_callback", "metrics_of_module"]


def metrics_of_module(module: LightningModule, *, data: Any) -> LoggedMetrics:
    """What a module promises.

    Args:
        module: of the fit.
        data: its data module, declared, not opened.

    Raises:
        ValueError: it has no method `logged_metrics`, so nobody knows.
    """
    if not provides(module, ModuleLogs):
        raise ValueError(
            f"{type(module).__name__} does not say what it logs, so trials may all be charged and then be "
            "judged by a metric that none of them has: give it a method logged_metrics(data) that returns "
            "lightning_dp.protocols.LoggedMetrics(test=frozenset({…}))"
        )
    return module.logged_metrics(data)


def metrics_of_callback(callback: Callback, *, module: LightningModule, data: Any) -> LoggedMetrics:
    """What a callback adds: nothing where it does not say."""
    return callback.logged_metrics(module, data) if provides(callback, CallbackLogs) else LoggedMetrics()
