"""Loggers that a user adds must not carry private statistics away; that of the run folder marks them."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_dp.tracking.outgoing import PRIVATE_PREFIX, FollowsFit, Outgoing
from lightning_dp.tracking.wandb_logger import DiscreetWandbLogger


@final
class RunMetrics(CSVLogger, FollowsFit):
    """The `metrics.csv` of a run folder. It keeps everything, and of a private fit under names that tell.

    What would not be sent is under `nonprivate/`, whoever logged it by whichever name.

    Args:
        public_metrics: as of `DiscreetWandbLogger`.
        **options: of CSVLogger.
    """

    def __init__(self, *, public_metrics: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self._public_metrics = tuple(public_metrics)
        self._outgoing: Outgoing | None = None

    def follow(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        marked = dict(metrics)
        if self._outgoing is not None:
            public = self._outgoing.metrics(metrics, public=self._public_metrics)
            marked = {
                name if name in public or name.startswith(PRIVATE_PREFIX) else PRIVATE_PREFIX + name: value
                for name, value in {**metrics, **public}.items()
            }
        super().log_metrics(marked, step)


def check_loggers(loggers: Sequence[Logger], *, share_nonprivate: bool) -> None:
    """Raise ValueError for a logger that may send what it gets to another machine.

    TensorBoard and CSV files stay here, and the package's own W&B logger keeps private statistics back; of
    any other logger nobody knows.
    """
    if share_nonprivate:
        return
    for logger in find_outgoing(loggers):
        raise ValueError(
            f"trainer.logger has a {type(logger).__name__}, which may send nonprivate/ statistics away, "
            "and no ε covers those: leave trainer.logger out and use --run.wandb, or allow it by "
            "--run.share_nonprivate=true"
        )


def find_outgoing(loggers: Sequence[Logger]) -> list[Logger]:
    """Those that are not known to keep what they get here. A subclass may send what its parent keeps."""
    return [logger for logger in loggers if not _stays_here(logger)]


def _stays_here(logger: Logger) -> bool:
    if type(logger) in (CSVLogger, RunMetrics, TensorBoardLogger):
        return "://" not in str(logger.save_dir)
    return type(logger) in (DiscreetWandbLogger, DummyLogger)
