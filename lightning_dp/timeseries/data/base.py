"""What every data module of windows shares: loaders, the task, and the facts that others ask for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.strategies.every_row_once import evaluation_sampler
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.synthetic import synthetic_windows
from lightning_dp.timeseries.data.windows import UserWindowDataset, WindowDataset, collate
from lightning_dp.timeseries.masks import Forecast, Kind, Mask, kind_of
from lightning_dp.timeseries.metrics import scored_scale

_WINDOWS_AT_ONCE = 1024
_WINDOWS_OF_KIND = 64


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three parts of a data set.

    Attributes:
        train: every item is one privacy unit.
        val: windows in order, or None where nothing was held out for validation.
        test: windows in order.
    """

    train: WindowDataset | UserWindowDataset
    val: WindowDataset | None
    test: WindowDataset


class WindowDataModule(LightningDataModule, ABC):
    """Windows of context and horizon, in original units, with a task and a privacy unit.

    A subclass sets the attributes below in `__init__`, without reading anything, and says how to read
    (`read_splits`) and what one train item is (`privacy_unit`). What the test sees, contexts of its windows
    included, must not be rows of the train split unless these are public: test metrics are published.

    Attributes:
        dataset_id: the name under which ledgers and results know these rows.
        channel_names: C names.
        num_covariates: F.
        steps_per_day: time steps of a day; 1 where a day has no steps of its own.
        rows_per_unit: rows of a batch that one train item fills.
        value_unit: of the values, for figures; empty where it differs by channel.
        length: L = context_length + horizon.
        num_channels: C.
        task: what is to be predicted; None = the forecast of the last `horizon` steps.
    """

    dataset_id: str
    channel_names: list[str]
    num_covariates: int
    steps_per_day: int
    rows_per_unit: int = 1
    value_unit: str = ""

    def __init__(
        self, *, context_length: int, horizon: int, batch_size: int, num_workers: int, task: Mask | None
    ) -> None:
        """Keep what all share.

        Args:
            context_length: ≥ 0, time steps before the horizon; 0 leaves nothing to go by, as in a synthesis.
            horizon: ≥ 1, last time steps of a window.
            batch_size: ≥ 1, train items of a batch.
            num_workers: ≥ 0, loader processes.
            task: see above.

        Raises:
            ValueError: a count is too small.
        """
        super().__init__()
        for field, value, least in (
            ("context_length", context_length, 0),
            ("horizon", horizon, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            self.check_count(field, value, least=least)
        self.context_length = context_length
        self.horizon = horizon
        self.length = context_length + horizon
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.task = task
        self._splits: Splits | None = None
        self._metric_scale: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def read_splits(self) -> Splits:
        """Read the data and index its windows; called once."""

    def read_metric_scale(self) -> tuple[Tensor, Tensor]:
        """(C,) float32 mean and standard deviation that standardise errors; called once, for an evaluation.

        Of the values that the test scores: an MSE of 1 is then that of their mean. No train row has a part
        in it, or whoever knows the test rows could read the train rows' variance off a published error. Data
        that is public to everyone may override this by the constants of its protocol.
        """
        windows = range(len(self.test_dataset))
        return scored_scale(
            self.test_dataset.__getitems__(windows[start : start + _WINDOWS_AT_ONCE])
            for start in windows[::_WINDOWS_AT_ONCE]
        )

    @abstractmethod
    def privacy_unit(self) -> PrivacyUnit:
        """What one item of the train set is."""

    def check_count(self, field: str, value: int, *, least: int = 1) -> None:
        """Raise ValueError unless `value` is at least `least`."""
        if value < least:
            raise ValueError(f"{type(self).__name__}.{field} is {value}; it must be at least {least}.")

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.channel_names)

    @property
    def kind(self) -> Kind:
        """What the test asks for, by the masks of its first windows; nothing is read."""
        task = self.task or Forecast(self.horizon)
        return kind_of(
            task.draw_fixed(range(_WINDOWS_OF_KIND), length=self.length, num_channels=self.num_channels)
        )

    def facts(self) -> dict[str, str | float | int]:
        """Plain facts for tables of results."""
        return {
            "task": str(self.task or Forecast(self.horizon)),
            "context_length": self.context_length,
            "horizon": self.horizon,
            "windows_per_unit": self.rows_per_unit,
        }

    def synthetic_units(self, num_units: int) -> Batch:
        """A train batch of made-up items, from public facts alone: nothing is read."""
        return synthetic_windows(
            num_units * self.rows_per_unit,
            length=self.length,
            horizon=self.horizon,
            num_channels=self.num_channels,
            num_covariates=self.num_covariates,
            task=self.task,
        )

    def synthetic_items(self, num_items: int) -> list[Batch]:
        """The same as items that `collate` lays end to end: (λ, L, C) with λ = rows_per_unit."""
        columns: Any = self.synthetic_units(num_items)
        split = {name: values.chunk(num_items) for name, values in columns.items()}
        return [cast(Batch, {name: own[item] for name, own in split.items()}) for item in range(num_items)]

    def rehearsal_data(self) -> "WindowDataModule":
        """Made-up windows with the same public facts, and with a validation split where this has one."""
        from lightning_dp.timeseries.data.made_up import MadeUpWindows  # late: it is a kind of this

        return MadeUpWindows(self)

    @property
    def is_set_up(self) -> bool:
        """Whether the splits were read."""
        return self._splits is not None

    def setup(self, stage: str | None = None) -> None:
        """Read and split; cheap to call again."""
        if self._splits is None:
            self._splits = self.read_splits()
            self.train_dataset = self._splits.train
            self.val_dataset = self._splits.val
            self.test_dataset = self._splits.test

    @property
    def metric_mean(self) -> Tensor:
        """(C,) float32, see `read_metric_scale`. A constant of the metric: never train on it."""
        return self._scale()[0]

    @property
    def metric_std(self) -> Tensor:
        """(C,) float32 > 0, as the mean."""
        return self._scale()[1]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Train items in random order; a private fit replaces the sampling and keeps the rest."""
        return self._loader(self.train_dataset, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch] | list:
        """Validation windows in order; an empty list, which skips validation, where there are none."""
        if self.val_dataset is None:
            return []
        return self._eval_loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test windows in order, the last short batch included."""
        return self._eval_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test windows."""
        return self.test_dataloader()

    def _scale(self) -> tuple[Tensor, Tensor]:
        self.setup()
        if self._metric_scale is None:
            self._metric_scale = self.read_metric_scale()
        return self._metric_scale

    def _eval_loader(self, dataset: WindowDataset) -> DataLoader[Batch]:
        # As many rows at once as in training.
        rows = self.batch_size * self.rows_per_unit
        return self._loader(dataset, batch_size=rows, sampler=evaluation_sampler(dataset))

    def _loader(
        self, dataset: WindowDataset | UserWindowDataset, *, batch_size: int, **order: Any
    ) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            **order,
            batch_size=batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
        )
