"""Settings of a Lightning Trainer that would break or silently change private training."""

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from lightning_dp.callbacks.monitors import find_private_schedules
from lightning_dp.privacy.preflight import Accepted, settle
from lightning_dp.strategies.private_ddp import PrivateDDP

_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")


def check_trainer(trainer: Trainer) -> None:
    """Raise ValueError naming the setting, its value and the fix; called before data is set up."""

    def refuse(setting: str, value: object, why: str, fix: str) -> None:
        raise ValueError(f"trainer.{setting}={value!r} can't be used with privacy: {why}; {fix}")

    if trainer.gradient_clip_val is not None:
        refuse(
            "gradient_clip_val",
            trainer.gradient_clip_val,
            "it clips the noisy sum, not each unit's gradient, and protects nobody",
            "remove it and set privacy.max_grad_norm",
        )
    if trainer.accumulate_grad_batches != 1:
        refuse(
            "accumulate_grad_batches",
            trainer.accumulate_grad_batches,
            "a logical batch is one Poisson sample",
            "remove it; set privacy.expected_batch_size, and privacy.physical_batch_size for memory",
        )
    fast_dev_run = getattr(trainer, "fast_dev_run", False)
    if fast_dev_run:
        refuse("fast_dev_run", fast_dev_run, "it cuts a Poisson batch short", "use trainer.max_steps=1")
    overfit_batches = getattr(trainer, "overfit_batches", 0)
    if overfit_batches:
        refuse("overfit_batches", overfit_batches, "it replaces the Poisson sampler", "remove it")
    if trainer.limit_train_batches != 1.0:
        refuse(
            "limit_train_batches",
            trainer.limit_train_batches,
            "it may cut a Poisson batch short",
            "remove it and set trainer.max_steps",
        )
    if trainer.max_steps < 1:
        refuse(
            "max_steps",
            trainer.max_steps,
            "the cost is fixed before training, so the number of steps must be",
            "set it to the number of optimizer steps",
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, PrivateDDP):
        refuse(
            "strategy",
            type(trainer.strategy).__name__,
            f"it averages the raw gradients of {trainer.world_size} processes before anything is clipped",
            "set trainer.strategy=private_ddp, or use one device",
        )
    if trainer.precision not in _PRECISIONS:
        refuse(
            "precision",
            trainer.precision,
            "a loss scaler divides gradients by a factor that depends on private data",
            f"use one of {', '.join(_PRECISIONS)}",
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging):
            raise ValueError(
                f"the callback {type(callback).__name__} can't be used with privacy: it changes what a step "
                "is; remove it (lightning_dp.callbacks.ema.EMA averages weights)"
            )
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            raise ValueError(
                f"the callback {type(callback).__name__} can't be used with privacy: it trains on private "
                "rows before the fit and chooses by what it saw; remove it and set the value"
            )


def check_loader(loader: object) -> None:
    """Raise ValueError unless `loader` is a plain DataLoader whose sampling may be replaced."""
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"the train dataloader is a {type(loader).__name__}; private training needs one "
            "torch.utils.data.DataLoader over a dataset with a length, whose items are the privacy units"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "the train dataset is an IterableDataset; Poisson sampling needs one with a length and an index"
        )
    if type(loader.batch_sampler) is not BatchSampler or not isinstance(
        loader.sampler, RandomSampler | SequentialSampler
    ):
        raise ValueError(
            "the train dataloader has a sampler of its own; private training draws Poisson batches, so that "
            "sampler would be ignored: remove it"
        )


def check_optimizers(
    trainer: Trainer, module: LightningModule, *, accept: Mapping[str, str] | None = None
) -> list[Accepted]:
    """Raise ValueError unless one optimizer steps only parameters of `module`, fed by nothing private.

    Args:
        trainer: with its optimizers and schedules.
        module: of the fit.
        accept: code → reason, as in preflight; answers for schedules that a private metric feeds.

    Returns:
        What was accepted.
    """
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"{type(module).__name__}.configure_optimizers returns {len(trainer.optimizers)} optimizers; "
            "private training needs exactly one"
        )
    optimizer = trainer.optimizers[0]
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS evaluates the loss several times per step; use SGD or Adam with privacy")
    known = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter.requires_grad and id(parameter) not in known for parameter in stepped):
        raise ValueError(
            f"the optimizer steps a parameter that is not part of {type(module).__name__}, so its gradient "
            "would not be clipped: register it on the module or leave it out"
        )
    return settle(find_private_schedules(trainer), accept=accept or {})
