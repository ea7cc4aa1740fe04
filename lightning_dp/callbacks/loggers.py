"""Loggers of a private fit: those that may send what train hooks log are found, others are told the rule."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer

from lightning_dp.privacy.preflight import Finding
from lightning_dp.tracking.local_loggers import find_outgoing
from lightning_dp.tracking.outgoing import FollowsFit, Outgoing


def find_outgoing_loggers(trainer: Trainer) -> list[Finding]:
    """Loggers that nobody knows to keep private statistics here."""
    return [
        Finding(
            code="logger",
            place="trainer.logger",
            problem=(
                f"has a {type(logger).__name__}, which may send what training_step and train hooks log to "
                "another machine, and no ε covers that"
            ),
            fix=(
                "take lightning_dp.tracking.wandb_logger.DiscreetWandbLogger, or a CSVLogger or "
                "TensorBoardLogger with a folder of this machine"
            ),
        )
        for logger in find_outgoing(trainer.loggers)
    ]


def follow_fit(trainer: Trainer, *, train: Any, figures: Callable[[], Mapping[str, float]]) -> None:
    """Loggers that ask what may leave this machine go by the rule of this fit.

    Args:
        trainer: of the private fit.
        train: its data set.
        figures: name → value of what is published of it at any time.
    """
    outgoing = Outgoing(trainer, train=train, figures=figures)
    for logger in trainer.loggers:
        if isinstance(logger, FollowsFit):
            logger.follow(outgoing)
