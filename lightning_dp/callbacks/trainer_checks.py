"""Settings of a Lightning Trainer that would break or silently change private training."""

import math
from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.precision import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from lightning_dp.callbacks.monitors import find_private_schedules
from lightning_dp.lightning_internals import detects_anomalies, seconds_between_validations
from lightning_dp.privacy.preflight import Accepted, settle
from lightning_dp.strategies.private_ddp import PrivateDDP

_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
# Others scale the loss, or keep gradients where no clipping engine looks.
_PRECISION_PLUGINS = (Precision, DoublePrecision, HalfPrecision, MixedPrecision)
_STRATEGIES = (SingleDeviceStrategy, DDPStrategy, PrivateDDP)  # of one device, but for the last


def refusal(setting: str, value: object, why: str, fix: str) -> str:
    """A sentence about a setting of the trainer."""
    return f"trainer.{setting}={value!r} can't be used with privacy: {why}; {fix}"


def check_trainer(trainer: Trainer) -> None:
    """Raise ValueError naming each setting that can't be, its value and the fix, a line each.

    `gradient_clip_val` is allowed: Lightning clips after `on_before_optimizer_step`, so it post-processes a
    noisy gradient and bounds nobody's contribution.
    """
    found: list[str] = []

    def refuse(setting: str, value: object, why: str, fix: str) -> None:
        found.append(refusal(setting, value, why, fix))

    if trainer.accumulate_grad_batches != 1:
        refuse(
            "accumulate_grad_batches",
            trainer.accumulate_grad_batches,
            "a logical batch is one Poisson sample",
            "remove it; set privacy.expected_batch_size, and privacy.physical_batch_size for memory",
        )
    fast_dev_run = getattr(trainer, "fast_dev_run", False)
    if fast_dev_run:
        refuse(
            "fast_dev_run",
            fast_dev_run,
            "it cuts a Poisson batch short",
            "use 'lightning-dp fit --dry-run' or DifferentialPrivacy.check, which charge nothing",
        )
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
    if trainer.world_size > 1 and not isinstance(trainer.strategy, PrivateDDP):
        refuse(
            "strategy",
            type(trainer.strategy).__name__,
            f"it averages the raw gradients of {trainer.world_size} processes before anything is clipped",
            "set trainer.strategy=private_ddp, or use one device",
        )
    if type(trainer.strategy) not in _STRATEGIES:
        refuse(
            "strategy",
            type(trainer.strategy).__name__,
            "it keeps parameters or gradients in ways that nothing here can clip",
            "leave it at 'auto' for one device, or set trainer.strategy=private_ddp",
        )
        raise ValueError("\n".join(found))  # nothing else can be asked of a trainer under a strange strategy
    if detects_anomalies(trainer) or torch.is_anomaly_enabled():
        refuse(
            "detect_anomaly",
            True,
            "one record that is no number would stop the run, and so be told of",
            "remove it; such a record contributes 0 and is counted in nonprivate/units_not_finite",
        )
    if isinstance(trainer.accelerator, MPSAccelerator):
        refuse(
            "accelerator",
            "mps",
            "it has no float64, in which gradients are checked",
            "set trainer.accelerator=cpu",
        )
    if trainer.precision not in _PRECISIONS:
        refuse(
            "precision",
            trainer.precision,
            "a loss scaler divides gradients by a factor that depends on private data",
            f"use one of {', '.join(_PRECISIONS)}",
        )
    plugin = trainer.precision_plugin
    if type(plugin) not in _PRECISION_PLUGINS or getattr(plugin, "scaler", None) is not None:
        refuse(
            "plugins",
            type(plugin).__name__,
            "it may scale the loss or keep gradients elsewhere",
            f"set trainer.precision to one of {', '.join(_PRECISIONS)}",
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging):
            found.append(
                f"the callback {type(callback).__name__} can't be used with privacy: it changes what a step "
                "is; remove it (lightning_dp.EMA averages weights)"
            )
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            found.append(
                f"the callback {type(callback).__name__} can't be used with privacy: it trains on private "
                "rows before the fit and chooses by what it saw; remove it and set the value"
            )
        if isinstance(callback, BaseFinetuning | ModelPruning):
            found.append(
                f"the callback {type(callback).__name__} can't be used with privacy: it freezes, unfreezes "
                "or replaces parameters in the middle of a fit, and which ones are clipped and noised is "
                "fixed before; remove it, set requires_grad in __init__, and make each stage a fit of its own"
            )
    if found:
        raise ValueError("\n".join(found))


def check_length(trainer: Trainer, *, num_units: int, expected_batch_size: int) -> None:
    """Raise ValueError unless the number of steps and what goes by it are known before training."""
    per_epoch = num_units / expected_batch_size
    if trainer.max_steps < 1:
        epochs = trainer.max_epochs
        steps = math.ceil((epochs or 0) * per_epoch)
        wrong = refusal(
            "max_steps",
            trainer.max_steps,
            "the cost is fixed before training, so the number of steps must be",
            f"{epochs} epochs of {num_units} / {expected_batch_size} are {steps} steps: set "
            f"trainer.max_steps={steps}"
            if steps > 0
            else "set it to the number of optimizer steps",
        )
        raise ValueError(wrong)
    by_time = seconds_between_validations(trainer)
    interval = trainer.val_check_interval if by_time is None else f"{by_time} seconds"
    if not (isinstance(interval, int) or interval == 1.0):
        share = interval if isinstance(interval, float) else 1.0
        steps = max(1, round(share * per_epoch))
        wrong = refusal(
            "val_check_interval",
            interval,
            "batches are Poisson samples, so that an epoch is a number of steps and not of batches",
            f"an epoch of {num_units} / {expected_batch_size} is {math.ceil(per_epoch)} steps: set an int, "
            f"such as trainer.val_check_interval={steps} with trainer.check_val_every_n_epoch=null",
        )
        raise ValueError(wrong)


def check_parameters(module: nn.Module) -> None:
    """Raise ValueError if the gradients of a trainable parameter are of a kind that nothing here sums."""
    for path, child in module.named_modules():
        if getattr(child, "sparse", False) is True and any(
            p.requires_grad for p in child.parameters(recurse=False)
        ):
            raise ValueError(
                f"'{path}' is {type(child).__name__}(sparse=True), and noise must reach every row of its "
                "table, also those that no unit looked up: set sparse=False"
            )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise ValueError(
                f"the parameter '{name}' is complex, and only its real part would be trained: keep its real "
                "and imaginary part as two real parameters"
            )


def check_automatic(module: LightningModule) -> None:
    """Raise ValueError unless Lightning takes the module's steps."""
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} optimizes manually, so no callback can make its steps private; use "
            "automatic optimization, and where there are several optimizers, as in a GAN, train each one's "
            "part in a fit of its own"
        )


def check_loader(loader: object) -> None:
    """Raise ValueError unless `loader` is a plain DataLoader whose sampling may be replaced."""
    if isinstance(loader, CombinedLoader):
        raise ValueError(
            "the train dataloader is a CombinedLoader of several; private training needs one DataLoader: "
            "join the data sets, for example by torch.utils.data.ConcatDataset"
        )
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"the train dataloader is a {type(loader).__name__}; private training needs one "
            "torch.utils.data.DataLoader over a dataset with a length, whose items are the privacy units"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            "the train dataset is an IterableDataset; Poisson sampling needs one with a length and an index"
        )
    if loader.batch_sampler is None:
        raise ValueError(
            "the train dataloader has no batch size (batch_size=None), so each of its items may be a batch; "
            "private training samples single units: let an item be one unit, and set any batch_size"
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
    return settle(find_private_schedules(trainer, trainer.lr_scheduler_configs), accept=accept or {})
