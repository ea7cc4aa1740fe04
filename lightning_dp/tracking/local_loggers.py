"""Loggers that a user adds must not carry `nonprivate/` statistics away."""

from collections.abc import Sequence

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_dp.tracking.wandb_logger import DiscreetWandbLogger


def check_loggers(loggers: Sequence[Logger], *, share_nonprivate: bool) -> None:
    """Raise ValueError for a logger that may send what it gets to another machine.

    TensorBoard and CSV files stay here, and the package's own W&B logger keeps private statistics back; of
    any other logger nobody knows.
    """
    if share_nonprivate:
        return
    for logger in loggers:
        here = isinstance(logger, CSVLogger | TensorBoardLogger) and "://" not in str(logger.save_dir)
        if not here and not isinstance(logger, DiscreetWandbLogger):
            raise ValueError(
                f"trainer.logger has a {type(logger).__name__}, which may send nonprivate/ statistics away, "
                "and no ε covers those: leave trainer.logger out and use --run.wandb, or allow it by "
                "--run.share_nonprivate=true"
            )
