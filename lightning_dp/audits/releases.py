"""The observation point of audits: the gradient that a private step hands to the optimizer.

After `DifferentialPrivacy.on_before_optimizer_step` each trainable parameter's `.grad` is what the step
releases: (Σ clipped gradients + noise) / B. Any callback that comes after it may look, and an adversary who
holds all weights after each step knows as much. Who was in a batch is known here as an audit's own secret.
"""

from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_dp.audits.canary_module import CANARY, audited_weight, canary_entries
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy


@final
class Releases(Callback):
    """Keeps what each step of an audited module releases of its canaries; comes after the private callback.

    Attributes:
        scores: per step (m,), the released sum at each canary's entry, in units of C.
        inside: per step (m,) bool, which canaries' units were in the batch, there or not.
        sizes: per step, units in the batch.
    """

    def __init__(self) -> None:
        self.scores: list[np.ndarray] = []
        self.inside: list[np.ndarray] = []
        self.sizes: list[int] = []
        self._numbers: list[torch.Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        privacy = DifferentialPrivacy.of(trainer)
        assert privacy is not None
        self._numbers.append(batch[CANARY][:: privacy.plan.unit.rows_per_unit].cpu())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        privacy = DifferentialPrivacy.of(trainer)
        assert privacy is not None
        gradient = audited_weight(pl_module).grad
        assert gradient is not None
        entries = canary_entries(pl_module)
        released = gradient.flatten()[entries].double() * privacy.plan.expected_batch_size
        numbers, self._numbers = torch.cat(self._numbers), []
        self.scores.append((released / privacy.plan.max_grad_norm).cpu().numpy())
        self.inside.append(np.isin(np.arange(len(entries)), numbers.numpy()))
        self.sizes.append(len(numbers))
