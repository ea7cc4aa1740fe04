"""A fit's surroundings without a fit: trainer, module and data joined as Lightning does, and let go again."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from torch import nn

from lightning_dp.privacy.draws import generators_put_back

STEPS = 1000
"""Of a trainer that nobody gave: early and late moments of training are tried in it."""


@final
class Refusals:
    """Checks that raised, one sentence each, instead of the first one alone."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A ValueError inside ends what is inside, and is kept."""
        try:
            yield
        except ValueError as error:
            self.sentences.append(" ".join(str(error).split()))


def plain_trainer(privacy: Callback) -> Trainer:
    """A trainer with nothing to refuse, which writes nothing."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)  # what devices there are is of no interest here
    try:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=STEPS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[privacy],
        )
    finally:
        lightning.setLevel(level)


@contextmanager
def without_fit(
    trainer: Trainer, module: LightningModule, data: Any, *, beside: tuple[object, ...] = ()
) -> Iterator[None]:
    """Inside, everything is as in a callback's `setup` of a fit; afterwards as it was before.

    Other callbacks' and the module's `setup` don't run, no logger is asked for its experiment, and
    random generators go on from where they were.

    Args:
        trainer: joined with module and data as by `Trainer.fit`.
        module: of the fit.
        data: the data module, which is prepared and set up, or the train loader.
        beside: other objects that get their attributes back.
    """
    datamodule = data if isinstance(data, LightningDataModule) else None
    loops = (
        trainer.fit_loop,
        trainer.fit_loop.epoch_loop.val_loop,
        trainer.validate_loop,
        trainer.test_loop,
        trainer.predict_loop,
    )
    touched = (
        trainer,
        trainer.state,
        trainer.strategy,
        trainer._data_connector,
        *loops,
        *(loop._data_source for loop in loops),
        *module.modules(),
        *(() if datamodule is None else (datamodule,)),
        *beside,
    )
    with ExitStack() as stack:
        for one in touched:
            stack.enter_context(_attributes_put_back(one))
        stack.enter_context(generators_put_back(trainer.strategy.root_device, seed=None))
        trainer.callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
        trainer.state.fn, trainer.state.status = TrainerFn.FITTING, TrainerStatus.RUNNING
        trainer.state.stage = RunningStage.TRAINING
        # An earlier private fit has put its own sampler there.
        trainer.fit_loop._data_source = _DataLoaderSource(None, "train_dataloader")
        trainer._data_connector.attach_data(
            module, train_dataloaders=None if datamodule is not None else data, datamodule=datamodule
        )
        trainer.strategy.connect(module)
        trainer._callback_connector._attach_model_callbacks()
        trainer._data_connector.prepare_data()
        if datamodule is not None:
            call._call_lightning_datamodule_hook(trainer, "setup", stage=TrainerFn.FITTING)
        yield


@contextmanager
def _attributes_put_back(one: object) -> Iterator[None]:
    """The attributes of an object, which may be replaced inside; what they refer to is not copied."""
    before = dict(vars(one))
    # A module's tables of parameters, buffers and modules: no copy is made of what is in them.
    tables = {name: dict(table) for name, table in before.items() if _is_table(one, name)}
    try:
        yield
    finally:
        vars(one).clear()
        vars(one).update(before)
        for name, table in tables.items():
            before[name].clear()
            before[name].update(table)


def _is_table(one: object, name: str) -> bool:
    return isinstance(one, nn.Module) and name in ("_parameters", "_buffers", "_modules")
