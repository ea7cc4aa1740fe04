"""What a model has to learn about private data before its first step, as one paid release.

Normalisation constants, a choice of what to train: each is a mechanism that is known before any row is
read, so its cost is planned, and composed, with the training that follows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic

from lightning_dp.privacy.release import Mechanism, PerUnit, Value


class Preparation(ABC, Generic[Value]):
    """One release before training; a module lists its own in `preparations(unit=, target_epsilon=, delta=)`.

    The caller keeps the order: the mechanism's event enters the plan, which may be refused; the ledger
    is charged; only then `values` reads; every process gets the same noisy answer by `apply`. A resumed
    fit does none of it again: what `apply` set must be part of the module's state.

    Attributes:
        rows_of_step: ≥ 1, how many times the rows that a training step makes of a unit `values` makes of it;
            by so much fewer units than in a physical batch of training come at once.
    """

    rows_of_step: float = 1.0

    @property
    @abstractmethod
    def mechanism(self) -> Mechanism[Value]:
        """What is released, made from public facts alone."""

    @abstractmethod
    def values(self, batches: Iterable[Any]) -> PerUnit:
        """One array a unit, read after the charge.

        Each is a function of its own unit and of public facts only. In a process group the first rank
        alone does this, so nothing has to be summed.

        Args:
            batches: every unit of the train split once, in order, or a Poisson sample of them at the
                mechanism's rate; collated as for training, with `rows_per_unit` consecutive rows each, and no
                more of them at once than training has.
        """

    @abstractmethod
    def apply(self, answer: Value) -> None:
        """Keep the noisy answer; called in every process, with the module on its device."""
