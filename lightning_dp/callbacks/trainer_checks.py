"""Settings of a Lightning Trainer that would break or silently change private training."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

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
    if trainer.world_size > 1:
        refuse(
            "devices",
            trainer.world_size,
            "several processes need a strategy that samples disjoint shards and adds noise once, which is "
            "not part of this version",
            "use one device",
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


def check_optimizers(trainer: Trainer, module: LightningModule) -> None:
    """Raise ValueError unless one optimizer steps only parameters of `module`, fed by nothing private."""
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
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    if any(
        config.reduce_on_plateau or isinstance(config.scheduler, plateau)
        for config in trainer.lr_scheduler_configs
    ):
        raise ValueError(
            "ReduceLROnPlateau feeds a private metric back into training; use a schedule that is fixed before"
        )
