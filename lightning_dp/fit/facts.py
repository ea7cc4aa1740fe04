"""What a private fit is, in one frozen object, made by the same lines for a fit and for what plans one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, final

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_dp.fit.declared_unit import dataset_name, find_unit, unit_before_data
from lightning_dp.privacy.accounting import Event
from lightning_dp.privacy.plan import DeltaRule, PrivacyPlan, delta_of
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit, UnitName
from lightning_dp.protocols import ListsPreparations, provides, rows_per_example_of


class PrivacySettings(Protocol):
    """What a fit goes by beside its module and data; `DifferentialPrivacy` has it."""

    unit: PrivacyUnit | UnitName | None
    dataset: str | None
    num_units: int | None
    expected_batch_size: int
    target_epsilon: float | None
    noise_multiplier: float | None
    max_grad_norm: float
    delta: float | DeltaRule


@final
@dataclass(frozen=True, kw_only=True)
class FitFacts:
    """Public facts of one private fit; no row is read for them.

    Attributes:
        dataset: the name under which the ledger keeps the account of its data.
        plan: of the whole fit, with its unit.
        preparations: the releases before its first step, in order; their events are in the plan.
    """

    dataset: str
    plan: PrivacyPlan
    preparations: tuple[Preparation[Any], ...]

    @classmethod
    def of(
        cls,
        settings: PrivacySettings,
        *,
        module: LightningModule,
        datamodule: LightningDataModule | None,
        data: object,
        num_steps: int,
    ) -> "FitFacts":
        """Of a fit whose data is there.

        Args:
            settings: of the fit.
            module: of the fit.
            datamodule: of the fit, or None.
            data: its train dataset, of which only the length is asked.
            num_steps: ≥ 1 optimizer steps.

        Raises:
            ValueError: a hook is misspelt or wrong, declarations differ, or the plan is impossible.
        """
        unit = unit_of_fit(settings, module=module, datamodule=datamodule, data=data)
        return cls.with_unit(
            settings, unit, module=module, datamodule=datamodule, data=data, num_steps=num_steps
        )

    @classmethod
    def before_data(
        cls,
        settings: PrivacySettings,
        *,
        module: LightningModule,
        datamodule: LightningDataModule,
        num_steps: int,
    ) -> "FitFacts":
        """Of a fit that is only planned; the data is opened if nothing else tells how many units there are.

        Args:
            settings, module, num_steps: as for `of`.
            datamodule: declared, not opened.
        """
        unit = unit_before_data(
            datamodule=datamodule, module=module, unit=settings.unit, dataset=settings.dataset
        )
        if unit is None and settings.num_units is not None:
            unit = PrivacyUnit(
                name=settings.unit if isinstance(settings.unit, str) else "record",
                num_units=settings.num_units,
                description="one item of the train dataset",
                declared=settings.unit is not None,
            )
        data: object = None
        if unit is None:
            datamodule.prepare_data()
            datamodule.setup("fit")
            data = datamodule.train_dataloader().dataset
            unit = unit_of_fit(settings, module=module, datamodule=datamodule, data=data)
        unit = _counted(unit, settings)
        return cls.with_unit(
            settings, unit, module=module, datamodule=datamodule, data=data, num_steps=num_steps
        )

    @classmethod
    def with_unit(
        cls,
        settings: PrivacySettings,
        unit: PrivacyUnit,
        *,
        module: LightningModule,
        datamodule: LightningDataModule | None,
        data: object,
        num_steps: int,
    ) -> "FitFacts":
        """Of a fit whose unit was resolved by `unit_of_fit`."""
        delta = delta_of(settings.delta, num_units=unit.num_units)
        preparations: Sequence[Preparation[Any]] = ()
        if provides(module, ListsPreparations):
            preparations = module.preparations(unit=unit, target_epsilon=settings.target_epsilon, delta=delta)
        plan = PrivacyPlan.make(
            unit,
            expected_batch_size=settings.expected_batch_size,
            num_steps=num_steps,
            target_epsilon=settings.target_epsilon,
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            delta=delta,
            prior=[preparation.mechanism.event for preparation in preparations],
        )
        name = dataset_name(data, datamodule=datamodule, dataset=settings.dataset)
        return cls(dataset=name, plan=plan, preparations=tuple(preparations))

    @property
    def unit(self) -> PrivacyUnit:
        """What the guarantee protects."""
        return self.plan.unit

    @property
    def rows_per_unit(self) -> int:
        """λ ≥ 1, consecutive rows of a collated batch that are one unit's."""
        return self.plan.unit.rows_per_unit

    def layer_rows_per_unit(self, module: LightningModule) -> int:
        """λ · `rows_per_example`: rows that the layers of `module` see of one unit, at this moment."""
        return layer_rows_per_unit(self.rows_per_unit, module)

    def after(self, earlier: tuple[Event, ...]) -> "FitFacts":
        """The same fit from weights that earlier runs of this account have charged `earlier` for."""
        return replace(self, plan=replace(self.plan, earlier=earlier))


def unit_of_fit(
    settings: PrivacySettings, *, module: object, datamodule: object | None, data: object
) -> PrivacyUnit:
    """The privacy unit of a fit whose data is there; see `find_unit`."""
    unit = find_unit(data, datamodule=datamodule, module=module, unit=settings.unit, dataset=settings.dataset)
    return _counted(unit, settings)


def _counted(unit: PrivacyUnit, settings: PrivacySettings) -> PrivacyUnit:
    return unit if settings.num_units is None else replace(unit, num_units=settings.num_units)


def layer_rows_per_unit(rows_per_unit: int, module: object) -> int:
    """Rows that the layers of a module see of one unit, of which a collated batch has `rows_per_unit`."""
    return rows_per_unit * rows_per_example_of(module)


def run_folder(trainer: Trainer) -> Path:
    """Where a fit writes. Every rank has to ask, as loggers agree on a name together."""
    return Path(trainer.log_dir or trainer.default_root_dir)
