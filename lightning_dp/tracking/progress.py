"""A progress bar that counts optimizer steps.

Lightning's own bars count batches; a private pass has an unknown number of those, and what a user
waits for, and pays for, is steps.
"""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

_SHOWN = {"privacy/epsilon": "ε", "nonprivate/train_loss": "loss"}


class StepProgress(ProgressBar):
    """`training 120/400 steps, ε=3.21, loss=0.842`; a line every half minute where nobody watches."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Without a step limit the total is what the epochs amount to, or unknown.
        steps = trainer.estimated_stepping_batches
        total = int(steps) if 0 < steps < float("inf") else None
        self._open("training", total=total, unit="step", initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = 0 if self._bar is None else trainer.global_step - self._bar.n
        if self._bar is not None and done:
            values = trainer.callback_metrics
            shown = {short: f"{float(values[name]):.3g}" for name, short in _SHOWN.items() if name in values}
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("testing", total=_count(trainer.num_test_batches), unit="batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("predicting", total=_count(trainer.num_predict_batches), unit="batch")

    def on_test_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_predict_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, what: str, *, total: int | None, unit: str, initial: int = 0) -> None:
        watched = sys.stderr.isatty()
        self._bar = tqdm(
            desc=what,
            total=total,
            unit=unit,
            initial=initial,
            disable=not self._enabled,
            mininterval=0.2 if watched else 30,
            dynamic_ncols=watched,
            leave=True,
        )

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _count(batches: list[int | float]) -> int | None:
    total = sum(batches)
    return None if total == float("inf") else int(total)
