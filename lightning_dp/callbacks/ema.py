"""An exponential moving average of the weights, used wherever the model is judged or sampled.

Under DP it is free post-processing: it reads released weights only.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class EMA(Callback):
    """Averages trainable weights once per optimizer step.

    Validation, test and predict run on the averaged weights, which are also what the module is left with
    after `fit` and what a checkpoint's `state_dict` holds; the weights that training goes on from lie beside
    them under `training_weights`, and a resumed fit takes them up again.

    Args:
        decay: share of the old average kept per step, in [0, 1).
        warmup: keep only (1 + n)/(10 + n) at step n while that is less, so that short runs aren't held back
            by the initial weights.
    """

    def __init__(self, *, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, but it is a share kept per step, in [0, 1): 0.999 is usual.")
        self.decay = decay
        self.warmup = warmup
        self._average: dict[str, Tensor] = {}
        self._training: dict[str, Tensor] = {}  # set aside while the module holds the average
        self._updates = 0
        self._seen_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # nothing of an earlier fit, perhaps of another module, may leak into this one
            self._average, self._training, self._updates = {}, {}, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._average:  # else a checkpoint filled it
            names = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
            self._average = _copy_of(pl_module, names)
        self._average = {name: value.to(pl_module.device) for name, value in self._average.items()}
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Several physical batches may make one optimizer step: only the step counts.
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self._updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self._updates) / (10 + self._updates))
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                if name in self._average:
                    self._average[name].lerp_(parameter.detach().to(self._average[name].dtype), 1 - decay)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Later callbacks may still save a checkpoint, from which training must be able to go on.
        self._use_average(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use_average(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._use_training(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use_average(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use_average(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._average:
            return
        training = self._training or _copy_of(pl_module, set(self._average))
        checkpoint["training_weights"] = {name: value.cpu() for name, value in training.items()}
        checkpoint["state_dict"].update(self._average)  # in place: its metadata says what the weights saw

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if (
            "training_weights" not in checkpoint
        ):  # saved without this callback: its weights are the best start
            return
        names = set(checkpoint["training_weights"])
        # The module has just loaded the average.
        self._average = _copy_of(pl_module, names)
        if trainer.state.fn == "fit":
            _load(pl_module, checkpoint["training_weights"])

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._updates = state_dict["updates"]

    def _use_average(self, pl_module: LightningModule) -> None:
        if self._average and not self._training:
            self._training = _copy_of(pl_module, set(self._average))
            _load(pl_module, self._average)

    def _use_training(self, pl_module: LightningModule) -> None:
        if self._training:
            _load(pl_module, self._training)
            self._training = {}


def _copy_of(module: LightningModule, names: set[str]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if name in names}


def _load(module: LightningModule, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
