"""Validation, test and checkpoint tried on made-up rows before the first charge.

The training step is the preflight's affair. Here a copy of the module runs `Trainer.validate`,
`Trainer.test` and `Trainer.save_checkpoint`, with Lightning's own loops and whatever reports
`configure_callbacks` brings along, on made-up rows, in a folder that is thrown away. So what would fail after
the budget is spent is known before: a baseline that has no room in the context, a test split that is not
there, a metric that can't be computed, a hyperparameter that no checkpoint can hold, a disk too small.

Not rehearsed: callbacks of the trainer, which say by their own `setup` what they can't do, and what depends
on the values of real rows.
"""

import copy
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.made_up_units import made_up_units
from lightning_dp.callbacks.preflight import shared_by_copies, undisturbed
from lightning_dp.lightning_internals import (
    as_written,
    datamodule_of,
    steps_between_checkpoints,
    train_loader_of,
)
from lightning_dp.privacy.preflight.copies import copied as copy_of
from lightning_dp.privacy.preflight.made_up import Uncollated
from lightning_dp.privacy.sampling import PoissonLoader
from lightning_dp.protocols import ChecksTest, MakesRehearsal, provides, rows_per_unit_of
from lightning_dp.runs.abilities import RunModule

_OWN_ROWS = 4
_WAY_OUT = "or leave it out by {option} and do it afterwards by 'lightning-dp {command}'"


@final
@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What a rehearsal showed.

    Attributes:
        metrics: names that validation and test logged.
        left_out: what the fit will do without, a sentence each.
        tests: whether the fit can be followed by its test.
        checkpoint: bytes of a checkpoint, optimizer included.
        on_disk: bytes of all checkpoints at once.
    """

    metrics: frozenset[str]
    left_out: tuple[str, ...]
    tests: bool
    checkpoint: int
    on_disk: int


@final
class Rehearsal(Callback):
    """Rehearses a fit in its `setup`, after the preflight of the callbacks before it.

    Args:
        folder: of the run, whose disk has to hold the checkpoints.
        test: whether the fit is to be followed by its test.
    """

    def __init__(self, folder: Path, *, test: bool) -> None:
        self.folder = folder
        self.test = test
        self.found: Rehearsed | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ValueError where the fit could not be followed through; nothing is charged yet."""
        if stage != "fit":
            return
        self.found = rehearse(trainer, pl_module, folder=self.folder, test=self.test)
        self.test = self.found.tests
        if trainer.is_global_zero:
            for sentence in self.found.left_out:
                print(sentence, flush=True)
        data = datamodule_of(trainer)
        if self.test and trainer.limit_test_batches != 0 and provides(data, ChecksTest):
            data.check_test()


def rehearse(trainer: Trainer, module: LightningModule, *, folder: Path, test: bool) -> Rehearsed:
    """Try on made-up rows what follows training; to be called where a callback's `setup` is.

    Reads no row, writes nothing, and leaves trainer, module and random generators as they were.

    Args:
        trainer: of the fit, with its data.
        module: of the fit, not yet set up.
        folder: of the run.
        test: whether a test is wanted.

    Raises:
        ValueError: validation, test or checkpoint would fail, or would not fit on the disk.
    """
    data, left_out = datamodule_of(trainer), []
    lacks = lacks_test(module, data) if test else ""
    if lacks:
        left_out.append(f"the test is left out: {lacks}")
    tests = test and not lacks
    metrics: set[str] = set()
    loader: Any = train_loader_of(trainer)
    with undisturbed(trainer), tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever is worth a warning is worth it in the fit
        stand_in = _made_up(trainer, data)
        tried = copy_of(module, keep=shared_by_copies(trainer, module, loader), with_weights=True)
        as_written(tried)
        if isinstance(tried, RunModule):
            tried.set_sampling(num_steps=2, rank=None)
        writer = _Counting()
        inner = _inner(trainer, scratch=scratch, writer=writer)
        if stand_in is None:
            left_out.append("validation and test were not rehearsed: nobody tells what rows look like")
        elif trainer.limit_val_batches != 0 and _validates(tried, data):
            with _told("validation", option="--trainer.limit_val_batches=0", command="validate"):
                inner.validate(tried, datamodule=stand_in, verbose=False)
            metrics |= set(inner.callback_metrics)
        if stand_in is not None and tests and trainer.limit_test_batches != 0:
            with _told("its test", option="--run.test=false", command="test"):
                inner.test(tried, datamodule=stand_in, verbose=False)
            metrics |= set(inner.callback_metrics)
        inner.strategy.connect(tried)
        try:
            inner.save_checkpoint(Path(scratch) / "checkpoint")
        except Exception as error:
            raise ValueError(
                f"no checkpoint of {type(module).__name__} can be written ({_first_line(error)}): keep what "
                "can't be pickled out of save_hyperparameters (its argument ignore) and on_save_checkpoint"
            ) from error
    size = writer.size + _optimizer_bytes(module)
    on_disk = size * _checkpoints_at_once(trainer)
    _check_disk(folder, needed=on_disk, each=size)
    return Rehearsed(
        metrics=frozenset(metrics),
        left_out=tuple(left_out),
        tests=tests,
        checkpoint=size,
        on_disk=on_disk,
    )


def lacks_test(module: LightningModule, data: LightningDataModule | None) -> str:
    """What a test would need and nobody has; "" where nothing is missing."""
    if not is_overridden("test_step", module):
        return f"{type(module).__name__} has no test_step"
    if data is None or not is_overridden("test_dataloader", data):
        return f"{type(data).__name__ if data is not None else 'the fit'} has no test_dataloader"
    return ""


def _validates(module: LightningModule, data: LightningDataModule | None) -> bool:
    known = data is not None and is_overridden("val_dataloader", data)
    return known and is_overridden("validation_step", module)


@contextmanager
def _told(what: str, *, option: str, command: str) -> Iterator[None]:
    """A failure inside is the user's to know before anything is charged."""
    try:
        yield
    except Exception as error:
        problem = _first_line(error)
        if isinstance(error, ValueError):  # a sentence of its own
            raise ValueError(f"{what} of this fit would fail, so nothing was charged: {problem}") from error
        way_out = _WAY_OUT.format(option=option, command=command)
        raise ValueError(
            f"{what} of this fit would fail, so nothing was charged: on made-up rows it ends with "
            f"{type(error).__name__}: {problem}; let it run on any rows (those of a data module's "
            f"rehearsal_data() are tried where it has that method), {way_out}"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(lines) if isinstance(error, ValueError) else (lines or [type(error).__name__])[0]


def _made_up(trainer: Trainer, data: LightningDataModule | None) -> LightningDataModule | None:
    """A data module of made-up rows; None where nobody tells what they look like."""
    if data is None:
        return None
    if provides(data, MakesRehearsal):
        made: LightningDataModule = data.rehearsal_data()
        return made
    loader: Any = train_loader_of(trainer)
    if isinstance(loader, PoissonLoader):
        loader = loader.replaced()
    if not isinstance(loader, DataLoader):
        return None
    privacy = DifferentialPrivacy.of(trainer)
    units, _ = made_up_units(
        trainer,
        loader,
        rows_per_unit=rows_per_unit_of(data),
        synthetic_items=None if privacy is None else privacy.synthetic_items,
        synthetic_units=None if privacy is None else privacy.synthetic_units,
    )
    if units is None:
        return None
    batch = units.pick(range(_OWN_ROWS))
    batch = batch.collated() if isinstance(batch, Uncollated) else batch
    rows: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    stand_in: Any = copy.copy(data)
    stand_in.prepare_data = lambda: None
    stand_in.setup = stand_in.teardown = lambda stage=None: None
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if is_overridden(name, data):
            setattr(stand_in, name, lambda: rows)
    own: LightningDataModule = stand_in
    return own


def _inner(trainer: Trainer, *, scratch: str, writer: TorchCheckpointIO) -> Trainer:
    device = trainer.strategy.root_device
    accelerator = "cpu" if device.type == "cpu" else trainer.accelerator
    precision: Any = trainer.precision
    return Trainer(
        accelerator=accelerator,
        devices=1 if device.index is None else [device.index],
        precision=precision,
        fast_dev_run=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        default_root_dir=scratch,
        plugins=[writer],
    )


@final
class _Counting(TorchCheckpointIO):
    """Pickles checkpoints into nothing, and counts their bytes."""

    size = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        class Sink:
            def write(_, data: Any) -> int:
                self.size += len(data)
                return len(data)

            def flush(_) -> None:
                pass

        torch.save(checkpoint, Sink())  # type: ignore[arg-type]


def _optimizer_bytes(module: LightningModule) -> int:
    """Two moments of each trained weight, as Adam keeps them."""
    return sum(2 * p.nbytes for p in module.parameters() if p.requires_grad)


def _checkpoints_at_once(trainer: Trainer) -> int:
    """How many checkpoints lie on the disk at the fullest moment, the one that is being written too."""
    number = 2  # the last one, and the next beside it until it is complete
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, ModelCheckpoint):
            continue
        every = steps_between_checkpoints(callback)
        kept = callback.save_top_k
        if kept == -1:
            kept = math.ceil(trainer.max_steps / every) if every and trainer.max_steps > 0 else 1
        number += kept + bool(callback.save_last)
    return number


def _check_disk(folder: Path, *, needed: int, each: int) -> None:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"checkpoints of this fit need {needed / 2**30:.3g} GiB ({each / 2**30:.3g} GiB each), and the "
            f"disk of {folder} has {free / 2**30:.3g} GiB left: free some, choose another run.dir, or keep "
            "fewer (save_top_k of ModelCheckpoint)"
        )
