"""What `setup` makes of a fit, in one frozen object; nothing private has been read by then."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_dp.callbacks.trainer_checks import (
    check_automatic,
    check_length,
    check_loader,
    check_parameters,
    check_trainer,
)
from lightning_dp.fit.declared_unit import ASSUMED
from lightning_dp.fit.facts import FitFacts, PrivacySettings, unit_of_fit
from lightning_dp.lightning_internals import datamodule_of, train_loader_of
from lightning_dp.privacy.distinct_items import check_distinct
from lightning_dp.privacy.own_generators import find_generators
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.preflight import Accepted, Trial
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.privacy.sampling import PoissonLoader

_logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class PlannedFit:
    """A private fit that was checked and planned.

    Attributes:
        facts: unit, plan and releases.
        loader: draws Poisson samples in the place of the user's own.
        ranks: the processes that train together.
        accepted: findings of the preflight that the user answers for.
    """

    facts: FitFacts
    loader: PoissonLoader
    ranks: Ranks
    accepted: tuple[Accepted, ...]


def checked_fit(
    settings: PrivacySettings,
    trainer: Trainer,
    module: LightningModule,
    *,
    ranks: Ranks,
    attempt: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[DataLoader[Any], FitFacts]:
    """The user's train loader and the facts of a fit whose settings are right.

    Args:
        settings: of the fit.
        trainer: with its data.
        module: of the fit.
        ranks: the first one says what was assumed.
        attempt: around each check that later ones don't build on.

    Raises:
        ValueError: the first that is wrong, unless `attempt` keeps it.
    """
    with attempt():
        check_trainer(trainer)
    with attempt():
        check_automatic(module)
    loader = train_loader_of(trainer)
    check_loader(loader)
    assert isinstance(loader, DataLoader)
    with attempt():
        check_parameters(module)
    with attempt():
        _refuse_own_generators(trainer, module, loader)
    datamodule = datamodule_of(trainer)
    unit = unit_of_fit(settings, module=module, datamodule=datamodule, data=loader.dataset)
    if not unit.declared and ranks.is_first:
        _logger.warning(
            "The privacy unit is %s; say it by a method privacy_unit() of the data module or the train "
            "dataset, or by DifferentialPrivacy(unit=…)",
            ASSUMED,
        )
    check_length(trainer, num_units=unit.num_units, expected_batch_size=settings.expected_batch_size)
    with attempt():
        check_distinct(loader)
    facts = FitFacts.with_unit(
        settings,
        unit,
        module=module,
        datamodule=datamodule,
        data=loader.dataset,
        num_steps=trainer.max_steps,
    )
    _check_signal(facts.plan, module, say=ranks.is_first)
    return loader, facts


def _check_signal(plan: PrivacyPlan, module: LightningModule, *, say: bool) -> None:
    """Warn of a single unit, and where noise must outweigh all gradients together.

    A step's mean gradient is at most C long where all of its units pull the same way; its noise is about
    σ·C·√d / B long, for d trained numbers. Over T steps signals add up to at most T·C and noise to √T of one
    step's. Where √T·B / (σ·√d) is below 1, the noise is longer than the sum of all signals in the best case.
    """
    unit = plan.unit
    if unit.num_units < 2 and say:
        _logger.warning(
            "the train set is a single %s, and privacy that hides whether it is there leaves nothing of it "
            "to learn: let a smaller part be the unit, such as a window of the series "
            "(data.init_args.unit: window), or give data of more units",
            unit.name,
        )
        return
    numbers = sum(p.numel() for p in module.parameters() if p.requires_grad)
    noise = plan.noise_multiplier * math.sqrt(numbers)
    ratio = math.sqrt(plan.num_steps) * plan.expected_batch_size / noise if noise else math.inf
    if ratio < 1 and say:
        _logger.warning(
            "little can be learnt: %d %ss in a batch under noise of σ = %.3g on %d trained numbers; even if "
            "all pulled the same way in each of %d steps, their gradients would add up to %.2g of the "
            "noise's length (√steps · batch / (σ·√numbers)); take more units, a larger ε, more steps "
            "or fewer weights",
            plan.expected_batch_size,
            unit.name,
            plan.noise_multiplier,
            numbers,
            plan.num_steps,
            ratio,
        )


def _refuse_own_generators(trainer: Trainer, module: LightningModule, loader: DataLoader[Any]) -> None:
    beside = (trainer, datamodule_of(trainer), loader, *trainer.loggers)
    found = [
        where
        for name, one in (
            (type(module).__name__, module),
            (type(loader.dataset).__name__, loader.dataset),
            ("collate_fn", loader.collate_fn),
        )
        for where in find_generators(name, one, beside=beside)
    ]
    if found:
        raise ValueError(
            f"{', '.join(found)} is a random generator of its own, whose seed may be known, and what "
            "units draw from it in the order of the batch with it: draw from torch's, numpy's or "
            "Python's global generators, which are filled with the operating system's entropy for the fit"
        )


def say_memory(
    trial: Trial,
    *,
    preparations: Sequence[Preparation[Any]],
    units_at_once: int,
    precision: str | int,
    ranks: Ranks,
) -> None:
    """Print what the passes before training will hold at once, before anything is charged or read.

    Args:
        trial: of the preflight; it knows the memory of a unit.
        preparations: of the fit; nothing is printed where there are none.
        units_at_once: ≥ 1 units of a physical batch.
        precision: the trainer's.
        ranks: the first one prints.
    """
    if not (ranks.is_first and preparations) or (each := trial.bytes_of_unit) is None:
        return
    passes = ", ".join(type(preparation).__name__ for preparation in preparations)
    size = _readable(units_at_once * each)
    print(
        f"{passes}: {units_at_once} units at once in {precision}, as in a step of training, which "
        f"keeps about {size} of activations (privacy.physical_batch_size makes it less)",
        flush=True,
    )


def _readable(size: float) -> str:
    """Bytes in the largest unit of which there is at least one."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
