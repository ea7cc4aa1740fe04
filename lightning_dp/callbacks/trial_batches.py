"""One train batch of a copied module through every hook that Lightning calls, in Lightning's order.

Nothing is trained: what the optimizer reads is the same made-up gradient whatever the batch was, as noise
would be. The user's callbacks are copied too; Lightning's and this project's own are not run. Hooks that
prepare a fit (`on_fit_start`, `on_train_start`) are not run either, as that is where people read their data.
A callback that can't be copied, or fails without them, is left out: what it keeps is not looked at.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_dp.lightning_internals import configured_optimizers, datamodule_of
from lightning_dp.privacy.preflight import HookFailed, StepFailed
from lightning_dp.privacy.row_losses import mean_loss

_HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_save_checkpoint",
    "state_dict",
)
_OURS = ("lightning", "lightning_dp")


def moved(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """A batch as `training_step` gets it."""
    if trainer.precision == "64-true":
        batch = trainer.precision_plugin.convert_input(batch)
    datamodule = datamodule_of(trainer)
    for name, more in (
        ("on_before_batch_transfer", ()),
        ("transfer_batch_to_device", (module.device,)),
        ("on_after_batch_transfer", ()),
    ):
        own = datamodule is None or not is_overridden(name, datamodule)
        batch = getattr(module if own else datamodule, name)(batch, *more, 0)
    return batch


def output_of(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """What `training_step` returns for a batch that was moved."""
    second = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return module.training_step(batch, *([trainer.global_step] if second else []))


@contextmanager
def untouched(module: LightningModule) -> Iterator[list[str]]:
    """Buffers as they were afterwards.

    Yields:
        A list of the buffers and weights that were written in place meanwhile.
    """
    named = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    versions = {name: tensor._version for name, tensor in named.items() if not tensor.is_inference()}
    values = {name: buffer.clone() for name, buffer in module.named_buffers()}
    written: list[str] = []
    yield written
    written += [name for name, version in versions.items() if named[name]._version != version]
    with torch.no_grad():
        for name in written:
            if name in values:
                named[name].copy_(values[name])


class TrialBatch:
    """Trains on a batch as a fit would; two modules that are given the same stay the same.

    Args:
        trainer: of the fit; its loggers and counters are somebody else's care.
        original: the module of the fit, in whose place callbacks get the copy.
        keep: what callbacks refer to and copies share.
    """

    def __init__(self, trainer: Trainer, *, original: LightningModule, keep: tuple[Any, ...]) -> None:
        self._trainer = trainer
        self._original = original
        self._keep = keep

    def __call__(self, module: LightningModule, batch: Any) -> dict[str, object]:
        """What a checkpoint would hold of `module` afterwards, and the settings of its optimizer, by name."""
        # A second batch goes on with what the first one left.
        run = vars(module).get("_trial") or _Run(self, module)
        object.__setattr__(module, "_trial", run)
        run.batch(batch)
        return run.kept()

    def callbacks(self, module: LightningModule) -> list[Callback]:
        """Copies of the user's callbacks that have a hook of a train batch."""
        copies = []
        for callback in self._trainer.callbacks:  # type: ignore[attr-defined]
            if not any(_is_users(callback, name) for name in _HOOKS):
                continue
            known: dict[int, Any] = {id(one): one for one in self._keep if one is not callback}
            known[id(self._original)] = module
            with suppress(Exception):
                copies.append(copy.deepcopy(callback, known))
        return copies


class _Run:
    """One module's optimizer, schedules and callbacks."""

    def __init__(self, trial: TrialBatch, module: LightningModule) -> None:
        self._trainer, self._module = trial._trainer, module
        self._callbacks = trial.callbacks(module)
        self._optimizer, self._schedules = _optimizer_of(module)
        module.optimizers = lambda *_, **__: self._optimizer  # type: ignore[method-assign, assignment]
        constant = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda _: 1.0)
        schedule = self._schedules[0].scheduler if self._schedules else constant
        module.lr_schedulers = lambda *_: schedule  # type: ignore[method-assign]

    def batch(self, batch: Any) -> None:
        """Everything from the start of the epoch to its end."""
        trainer, module, index = self._trainer, self._module, self._trainer.global_step
        module.trainer = trainer
        batch = moved(trainer, module, batch)
        outputs: list[Any] = []

        def closure() -> Tensor:
            loss = self._loss(batch, outputs)
            self._before_the_optimizer()
            return loss

        self._call("on_train_epoch_start")
        self._call("on_train_batch_start", batch, index)
        self._tried("optimizer_step", trainer.current_epoch, index, self._optimizer, closure)
        self._step_schedules()
        self._call("on_train_batch_end", outputs[-1] if outputs else None, batch, index)
        self._call("on_train_epoch_end")

    def kept(self) -> dict[str, object]:
        """By what it is called in messages."""
        module = self._module
        checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
        self._call("on_save_checkpoint", checkpoint)
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self._optimizer.param_groups
        ]
        kept: dict[str, object] = {
            "the optimizer's learning rate, or another of its settings,": groups,
            "state_dict": checkpoint.pop("state_dict", {}),
            "on_save_checkpoint": checkpoint,
            "hparams": dict(module.hparams),
        }
        for callback in self._callbacks:
            kept[f"trainer.callbacks: {type(callback).__name__}.state_dict"] = callback.state_dict()
        return kept

    def _loss(self, batch: Any, outputs: list[Any]) -> Tensor:
        module, trainer = self._module, self._trainer
        try:
            outputs.append(output_of(trainer, module, batch))
            loss = mean_loss(outputs[-1])
        except Exception as error:
            raise StepFailed(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise StepFailed("it returned no loss to differentiate")
        self._call("on_before_zero_grad", self._optimizer)
        self._tried("optimizer_zero_grad", trainer.current_epoch, trainer.global_step, self._optimizer)
        self._call("on_before_backward", loss)
        self._tried("backward", loss)
        module.zero_grad()  # the clipping engine leaves no gradient until the optimizer's step
        self._call("on_after_backward")
        return loss

    def _before_the_optimizer(self) -> None:
        for parameter in self._module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 1e-3)
        self._call("on_before_optimizer_step", self._optimizer)
        self._tried("configure_gradient_clipping", self._optimizer, None, None)

    def _step_schedules(self) -> None:
        for config in self._schedules:
            if not (config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau)):
                self._tried("lr_scheduler_step", config.scheduler, None)

    def _call(self, name: str, *arguments: Any) -> None:
        """A hook of callbacks and of the module, in that order."""
        for callback in list(self._callbacks):
            if not _is_users(callback, name):
                continue
            try:
                getattr(callback, name)(self._trainer, self._module, *arguments)
            except Exception:
                self._callbacks.remove(callback)
        self._tried(name, *arguments)

    def _tried(self, name: str, *arguments: Any) -> None:
        """A method of the module."""
        _guarded(f"{type(self._module).__name__}.{name}", getattr(self._module, name), *arguments)


def _is_users(callback: Callback, name: str) -> bool:
    """Whether a hook is neither Lightning's nor this project's."""
    hook = getattr(callback, name)
    return is_overridden(name, callback, parent=Callback) and hook.__module__.split(".")[0] not in _OURS


def _guarded(place: str, hook: Callable[..., Any], *arguments: Any) -> None:
    try:
        hook(*arguments)
    except (StepFailed, HookFailed):
        raise
    except Exception as error:
        fix = "let it run on any batch, before on_train_start too, or leave it out"
        if place.endswith("on_after_backward") and isinstance(error, AttributeError | TypeError):
            fix = "read gradients in on_before_optimizer_step: private ones exist from there on"
        raise HookFailed(error, place=place, fix=fix) from error


def _optimizer_of(module: LightningModule) -> tuple[Optimizer, list[LRSchedulerConfig]]:
    """The module's own; plain SGD where it needs more of a fit than there is yet."""
    try:
        optimizers, schedules = configured_optimizers(module)
        return optimizers[0], schedules
    except Exception:
        return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0), []
