"""What a fit says beforehand of the names it will log, so that nothing waits for one that never comes.

A module says it by a method `logged_metrics(data)`, a callback by `logged_metrics(module, data)`; either
returns a `LoggedMetrics`. Names are promised, not guessed: one that is logged only where the rows allow it is
left out.
"""

from dataclasses import dataclass
from typing import Any, final

from lightning.pytorch import Callback, LightningModule

from lightning_dp.tracking.outgoing import PRIVATE_PREFIX


@final
@dataclass(frozen=True, kw_only=True)
class LoggedMetrics:
    """Names by when they are logged.

    Attributes:
        train: by train hooks, so that trials can be compared before their end.
        validation: by validation.
        test: by the test at the end of a fit, which puts them into results.json.
    """

    train: frozenset[str] = frozenset()
    validation: frozenset[str] = frozenset()
    test: frozenset[str] = frozenset()

    def __or__(self, other: "LoggedMetrics") -> "LoggedMetrics":
        """Those of both."""
        return LoggedMetrics(
            train=self.train | other.train,
            validation=self.validation | other.validation,
            test=self.test | other.test,
        )

    def kept_private(self) -> "LoggedMetrics":
        """As the run folder of a private fit names them: what train hooks log is `nonprivate/…` there."""
        return LoggedMetrics(
            train=frozenset(
                name if name.startswith(PRIVATE_PREFIX) else PRIVATE_PREFIX + name for name in self.train
            ),
            validation=self.validation,
            test=self.test,
        )


def metrics_of_module(module: LightningModule, *, data: Any) -> LoggedMetrics:
    """What a module promises.

    Args:
        module: of the fit.
        data: its data module, declared, not opened.

    Raises:
        ValueError: it has no method `logged_metrics`, so nobody knows.
    """
    describe: Any = getattr(module, "logged_metrics", None)
    if describe is None:
        raise ValueError(
            f"{type(module).__name__} does not say what it logs, so trials may all be charged and then be "
            "judged by a metric that none of them has: give it a method logged_metrics(data) that returns "
            "lightning_dp.tracking.logged_metrics.LoggedMetrics(test=frozenset({…}))"
        )
    found: LoggedMetrics = describe(data)
    return found


def metrics_of_callback(callback: Callback, *, module: LightningModule, data: Any) -> LoggedMetrics:
    """What a callback adds: nothing where it does not say."""
    describe: Any = getattr(callback, "logged_metrics", None)
    return LoggedMetrics() if describe is None else describe(module, data)
