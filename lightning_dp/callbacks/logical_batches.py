"""Makes Lightning take the physical batches of one Poisson sample for the one batch that they are.

How many of them a sample needs says how large it was, and that is private: Lightning must neither step on
them nor count them, as its counters are in every checkpoint and decide when it validates.
"""

from typing import Any, final

from lightning.pytorch import Trainer

# Lightning divides the loss by accumulate_grad_batches and steps when its batch counter is a multiple
# of it. A power of two that no run reaches makes it wait, and is divided out again exactly.
_NEVER = 2**40


@final
class LogicalBatches:
    """Steps, counts and validates once per logical batch; made when training starts."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._val_check_batch = trainer.val_check_batch

    def begin_part(self, *, last: bool) -> None:
        """To be called at the start of each physical batch.

        Args:
            last: whether the optimizer steps after it.
        """
        if self.inside:
            self._count_no_further()
        self._trainer.accumulate_grad_batches = 1 if last else _NEVER
        self._trainer.val_check_batch = self._val_check_batch if last else float("inf")

    @property
    def inside(self) -> bool:
        """Whether more physical batches of the logical one are to come."""
        return self._trainer.accumulate_grad_batches != 1

    def end(self) -> None:
        """Leave the trainer as it was found."""
        self._trainer.accumulate_grad_batches = 1
        self._trainer.val_check_batch = self._val_check_batch

    def _count_no_further(self) -> None:
        """Take back what was counted for the part before this one."""
        loop = self._trainer.fit_loop.epoch_loop
        # Lightning types these as trackers with fewer stages than they have.
        counters: tuple[Any, ...] = (loop.batch_progress.total, loop.batch_progress.current)
        for counter in counters:
            counter.ready -= 1
            counter.started -= 1
            counter.processed -= 1
            counter.completed -= 1
        progress: Any = loop.automatic_optimization.optim_progress.optimizer
        for zeroed, stepped in (
            (progress.zero_grad.total, progress.step.total),
            (progress.zero_grad.current, progress.step.current),
        ):
            zeroed.ready = zeroed.started = zeroed.completed = stepped.completed
