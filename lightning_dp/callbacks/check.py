"""A fit's surroundings without a fit: trainer, module and data joined as Lightning does, and let go again."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus
from torch import nn

from lightning_dp.lightning_internals import attach_data, parts_that_attaching_changes, set_up_data
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
            self.sentences += [" ".join(line.split()) for line in str(error).splitlines()]


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
    touched = (
        *parts_that_attaching_changes(trainer),
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
        attach_data(trainer, module, data=data)
        if datamodule is not None:
            set_up_data(trainer, stage=TrainerFn.FITTING)
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
