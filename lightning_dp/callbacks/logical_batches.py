"""Makes Lightning take the physical batches of one Poisson sample for the one batch that they are.

How many of them a sample needs says how large it was, and that is private: Lightning must neither step on
them nor count them, as its counters are in every checkpoint and decide when it validates.

And holds the user's own hooks to one backward a physical batch and one step a logical one: a sum that
outlives its logical batch would hold a unit once for each batch that it was in, for the noise and the price
of one."""

from typing import Any, Literal, final

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
        self._last = True
        self._stage: Literal["begun", "collected", "stepped"] = "stepped"

    def begin_part(self, *, last: bool) -> None:
        """To be called at the start of each physical batch.

        Args:
            last: whether the optimizer steps after it.

        Raises:
            RuntimeError: the one before it is not done with.
        """
        if self._stage == "begun":
            raise RuntimeError(
                "no backward ran for the batch before this one (on_train_batch_start returned -1, or a hook "
                "skipped it): train on every batch that was sampled, and leave units out in the data set "
                "instead"
            )
        if self._stage == "collected" and self._last:
            raise RuntimeError(
                "the optimizer took no step after the batch before this one, so two Poisson samples would be "
                "summed and noised as one: let optimizer_step call optimizer.step(closure=optimizer_closure) "
                "for every batch, and set privacy.expected_batch_size for larger ones"
            )
        self._last, self._stage = last, "begun"
        if self.inside:
            self._count_no_further()
        self._trainer.accumulate_grad_batches = 1 if last else _NEVER
        self._trainer.val_check_batch = self._val_check_batch if last else float("inf")

    def collect(self) -> None:
        """To be called after each backward.

        Raises:
            RuntimeError: it is not the batch's first one.
        """
        if self._stage != "begun":
            raise RuntimeError(
                "a second backward ran for one batch (optimizer_step, or an optimizer such as SAM, called "
                "its closure twice), so its units would count twice: use an optimizer that calls it once"
            )
        self._stage = "collected"

    def step(self) -> None:
        """To be called before each optimizer step.

        Raises:
            RuntimeError: the logical batch was not trained on, or not to its end, or has had its step.
        """
        if self._stage == "begun":
            raise RuntimeError(
                "training_step gave no loss to differentiate, so nothing was clipped: return the mean loss "
                "of every batch, also of one that looks empty, and let optimizer_step call its closure"
            )
        if self._stage == "stepped" or not self._last:
            raise RuntimeError(
                "the optimizer was about to step twice, or in the middle of a logical batch: leave "
                "trainer.accumulate_grad_batches alone, and step once where Lightning does"
            )
        self._stage = "stepped"

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
