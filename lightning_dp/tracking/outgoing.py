"""Which metrics of a private fit may leave this machine: an allow list, by where they were logged.

A name tells nothing about where its value is from, so nothing here goes by names but those that the user
declares. A logger hears of every metric by `log_metrics`, while the trainer is in some stage; Lightning hands
on what train hooks log while it trains, and what validation and test log while it evaluates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, final

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils._pytree import tree_flatten

from lightning_dp.lightning_internals import logged_step
from lightning_dp.protocols import PRIVATE_PREFIX as PRIVATE_PREFIX
from lightning_dp.tracking.shared_rows import share_rows

_EVALUATING = (RunningStage.VALIDATING, RunningStage.TESTING)


@final
class Outgoing:
    """The rule of one private fit.

    What may go: the fit's own privacy figures, the epoch, numbers that are logged while validation or test
    runs (no ε covers those rows, which is said wherever ε is), and what the user declares public. Whatever a
    train hook logs, or anybody outside of an evaluation, stays; so do metrics of an evaluation on train rows.

    Args:
        trainer: of the fit; it is asked for its stage.
        train: the data set of the fit.
        figures: name → value of what is published of a private fit at this moment, such as ε. These values
            are sent whatever was logged under their names.
    """

    def __init__(self, trainer: Trainer, *, train: Any, figures: Callable[[], Mapping[str, float]]) -> None:
        self._trainer = trainer
        self._train = train
        self._last: tuple[list[Any], bool] = ([], False)  # data sets that were looked at, and what was found
        self._figures = figures
        self._kept: set[str] = set()

    @property
    def evaluating(self) -> bool:
        """Whether what is logged now is of validation or test rows, none of which is trained on."""
        stage = self._trainer.state.stage
        if stage not in _EVALUATING:
            return False
        validating = stage == RunningStage.VALIDATING
        loaders = self._trainer.val_dataloaders if validating else self._trainer.test_dataloaders
        datasets = [getattr(loader, "dataset", None) for loader in tree_flatten(loaders)[0]]
        if list(map(id, datasets)) != list(map(id, self._last[0])):
            self._last = (datasets, any(share_rows(dataset, self._train) for dataset in datasets))
        return not self._last[1]

    def metrics(self, metrics: Mapping[str, Any], *, public: Sequence[str]) -> dict[str, Any]:
        """Those that may go.

        Args:
            metrics: name → value, as a logger hears them.
            public: names that the user declares public.
        """
        figures = self._figures()
        sent = {}
        for name, value in metrics.items():
            if name in figures:
                sent[name] = float(np.float32(figures[name]))  # as everybody else hears it from Lightning
            elif name == "epoch":
                sent[name] = self._trainer.current_epoch
            elif name in public or (self.evaluating and _is_number(value)):
                sent[name] = value
        return sent

    def step(self, step: int | None) -> int | None:
        """The step to log under: while training the trainer's own, as a metric named "step" replaces it."""
        if self._trainer.state.stage in _EVALUATING:
            return step
        return logged_step(self._trainer)

    def tell(self, kept: set[str]) -> None:
        """Say once which names stayed, and how they may go."""
        new = sorted(kept - self._kept)
        self._kept |= kept
        if new:
            rank_zero_info(
                f"{', '.join(new)}: logged outside of validation and test of a private fit, so kept on this "
                "machine; name what is public knowledge in public_metrics"
            )


class FollowsFit(ABC):
    """A logger that asks `Outgoing` once a private fit has begun."""

    @abstractmethod
    def follow(self, outgoing: Outgoing) -> None:
        """Go by the rule of this fit from now on."""


def _is_number(value: Any) -> bool:
    """Not an image, a table or a histogram, which may show rows as they are."""
    return isinstance(value, Number) or (isinstance(value, Tensor) and value.numel() == 1)
