"""Everything of Lightning's private API that this package uses, behind functions with public names.

Lightning 2.6 offers no public way to replace a train sampler after the trainer has seen the data, to look at
a fit without starting it, or to know how a compiled module was compiled. Nothing else in the package reads an
underscored attribute of a trainer, a loop or a connector (`tests/test_lightning_internals.py` looks), and a
version of Lightning without one of them is answered by a sentence that names it.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer

PRIVATE_IMPORTS = {
    "_call_lightning_datamodule_hook": "lightning.pytorch.trainer.call",
    "_configure_optimizers": "lightning.pytorch.core.optimizer",
    "_configure_schedulers_automatic_opt": "lightning.pytorch.core.optimizer",
    "_DataLoaderSource": "lightning.pytorch.trainer.connectors.data_connector",
    "_DummyExperiment": "lightning.fabric.loggers.logger",
    "_given_hyperparameters": "lightning.pytorch.core.mixins.hparams_mixin",
}
"""Private names of Lightning → the module that defines them."""

PRIVATE_ATTRIBUTES = {
    "trainer": ("_callback_connector", "_data_connector", "_detect_anomaly", "_val_check_time_interval"),
    "trainer.fit_loop": ("_combined_loader", "_data_source"),
    "trainer.fit_loop.epoch_loop": ("_batches_that_stepped",),
    "trainer._callback_connector": ("_attach_model_callbacks",),
    "module": ("_compiler_ctx",),
    "ModelCheckpoint": ("_every_n_train_steps",),
}
"""Private attributes by the object that has them, for the contract test."""

OVERRIDDEN = ("_parse_ckpt_path", "_parser", "_run_subcommand", "_set_seed")
"""Methods of LightningCLI that `lightning_cli` overrides or calls."""


class LightningTooNew(RuntimeError):
    """The installed Lightning lacks a part of its private API that this package needs."""


def _lacks(what: str) -> LightningTooNew:
    return LightningTooNew(
        f"Lightning {version('lightning')} has no {what}, which lightning_dp needs: install "
        "'lightning>=2.6,<2.7'"
    )


def private_name(name: str) -> Any:
    """A private function or class of Lightning, by its name in `PRIVATE_IMPORTS`.

    Raises:
        LightningTooNew: this version has it no more, or elsewhere.
    """
    place = PRIVATE_IMPORTS[name]
    try:
        return getattr(import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise _lacks(f"{place}.{name}") from error


def _of(owner: object, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise _lacks(f"{type(owner).__name__}.{name}") from error


def _put(owner: object, name: str, value: object) -> None:
    _of(owner, name)  # a new attribute that nobody reads would replace nothing
    setattr(owner, name, value)


# --- the data of a fit ------------------------------------------------------------------------------


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """The data module of a fit; None where loaders were given. Lightning sets it when it attaches one."""
    return getattr(trainer, "datamodule", None)


def train_loader_of(trainer: Trainer) -> Any:
    """The train loader as the user gave it, or as a private fit has replaced it. No row is read."""
    return _of(trainer.fit_loop, "_data_source").dataloader()


def replace_train_loader(trainer: Trainer, loader: object) -> Callable[[], None]:
    """Let the next fit of `trainer` read from `loader`.

    Returns:
        What puts the user's own loader back.
    """
    before = _of(trainer.fit_loop, "_data_source")
    trainer.fit_loop._data_source = private_name("_DataLoaderSource")(loader, "")

    def put_back() -> None:
        trainer.fit_loop._data_source = before

    return put_back


def combined_loader(trainer: Trainer) -> Any:
    """The loaders that the fit loop has settled on, None before."""
    return _of(trainer.fit_loop, "_combined_loader")


def set_combined_loader(trainer: Trainer, loader: Any) -> None:
    """Let the fit loop go on with what `combined_loader` returned before."""
    _put(trainer.fit_loop, "_combined_loader", loader)


# --- a fit's surroundings without a fit -------------------------------------------------------------


def parts_that_attaching_changes(trainer: Trainer) -> tuple[object, ...]:
    """Objects of the trainer that `attach_data` writes into."""
    loops = (
        trainer.fit_loop,
        trainer.fit_loop.epoch_loop.val_loop,
        trainer.validate_loop,
        trainer.test_loop,
        trainer.predict_loop,
    )
    sources = (_of(loop, "_data_source") for loop in loops)
    return (trainer, trainer.state, trainer.strategy, _of(trainer, "_data_connector"), *loops, *sources)


def attach_data(trainer: Trainer, module: LightningModule, *, data: Any) -> None:
    """Join trainer, module and data as `Trainer.fit` does, up to before a callback's `setup`.

    Args:
        trainer: in the state of a fit.
        module: of the fit.
        data: the data module, which is prepared, or the train loader.
    """
    datamodule = data if isinstance(data, LightningDataModule) else None
    # An earlier private fit has put its own sampler there.
    source = private_name("_DataLoaderSource")(None, "train_dataloader")
    _put(trainer.fit_loop, "_data_source", source)
    connector = _of(trainer, "_data_connector")
    connector.attach_data(
        module, train_dataloaders=None if datamodule is not None else data, datamodule=datamodule
    )
    trainer.strategy.connect(module)
    _of(_of(trainer, "_callback_connector"), "_attach_model_callbacks")()
    connector.prepare_data()


def set_up_data(trainer: Trainer, *, stage: Any) -> None:
    """Call the data module's `setup` as a fit would, with its profiling and its checks."""
    private_name("_call_lightning_datamodule_hook")(trainer, "setup", stage=stage)


# --- settings and counters --------------------------------------------------------------------------


def detects_anomalies(trainer: Trainer) -> bool:
    """Whether `Trainer(detect_anomaly=True)` was set."""
    return bool(_of(trainer, "_detect_anomaly"))


def steps_between_checkpoints(callback: ModelCheckpoint) -> int:
    """`ModelCheckpoint(every_n_train_steps=…)`; 0 where it goes by epochs or time."""
    steps: int = _of(callback, "_every_n_train_steps")
    return steps


def is_rehearsal(trainer: Trainer) -> bool:
    """Whether this is a trial on made-up rows (`Trainer(fast_dev_run=…)`): reports need one of everything."""
    return bool(getattr(trainer, "fast_dev_run", False))


def seconds_between_validations(trainer: Trainer) -> float | None:
    """`Trainer(val_check_interval=…)` as a time in seconds; None where it is no time."""
    seconds: float | None = _of(trainer, "_val_check_time_interval")
    return seconds


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs what train hooks log."""
    step: int = _of(trainer.fit_loop.epoch_loop, "_batches_that_stepped")
    return step


def is_configured_by_cli() -> bool:
    """Whether a module is being made by LightningCLI, which saves its arguments as hyperparameters."""
    return private_name("_given_hyperparameters").get() is not None


# --- modules ----------------------------------------------------------------------------------------


def compiler_of(module: LightningModule) -> Any:
    """How a module was compiled by `torch.compile`; None where it was not."""
    return _of(module, "_compiler_ctx")


def as_written(module: LightningModule) -> None:
    """Undo the compilation of a copy of a module, whose compiled steps are bound to the original."""
    if compiler_of(module) is None:
        return
    for name in ("forward", "training_step"):
        vars(module).pop(name, None)
    module._compiler_ctx = None


def configured_optimizers(module: LightningModule) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """The optimizers and schedules of `configure_optimizers`, read as Lightning reads them."""
    optimizers, schedules, monitor = private_name("_configure_optimizers")(module.configure_optimizers())
    return optimizers, private_name("_configure_schedulers_automatic_opt")(schedules, monitor)
