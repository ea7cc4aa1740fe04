"""Half-hourly electricity of 622 British households (EDRP), March to May 2009: the user-level task.

The readings come with the R package phovafer (github.com/A-Giant-Panda/phovafer). Their own terms are not
stated, so they are neither shipped nor downloaded here: put the file where `SmartMeter` looks for it.

Protocol: households are split by `numpy.random.default_rng(0).permutation(622)`, the first 498 for training,
the last 124 for the test; a forecast of one day for every third day. Errors are standardised by what the test
scores, not by the train households, whose exact variance a published error would tell.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_dp.archives import load_npz
from lightning_dp.data_files import data_folder
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.timeseries.data.base import Splits, WindowDataModule
from lightning_dp.timeseries.data.calendar import NUM_CALENDAR_FEATURES, calendar_features
from lightning_dp.timeseries.data.series import ArrayStore
from lightning_dp.timeseries.data.train_items import (
    TrainItem,
    check_train_item,
    describe_train_items,
    make_train_items,
)
from lightning_dp.timeseries.data.whole_series import ArraySeries
from lightning_dp.timeseries.data.windows import WindowDataset
from lightning_dp.timeseries.masks import Mask

LOWER_KWH, UPPER_KWH = 0.0, 4.0
"""Public bounds of a household's half-hour: 4 kWh is 8 kW throughout. A few readings are above."""

_FILE = Path("smartmeter") / "edrp622_halfhourly.npz"
_STAMPS = "%Y-%m-%dT%H:%M"
_STEPS_PER_DAY = 48
_NUM_HOUSEHOLDS, _NUM_TRAIN, _NUM_STEPS = 622, 498, 4_416


class SmartMeter(WindowDataModule):
    """622 households × 92 days of half-hours; test households are never seen in training.

    One channel (kWh of the half-hour); covariates are the 6 calendar features.
    """

    def __init__(
        self,
        *,
        context_days: int = 7,
        horizon: int = _STEPS_PER_DAY,
        unit: TrainItem = "user",
        windows_per_user: int = 4,
        train_stride: int = 1,
        eval_stride: int = 3 * _STEPS_PER_DAY,
        val_households: int = 0,
        batch_size: int = 62,
        num_workers: int = 0,
        data_dir: str | None = None,
        task: Mask | None = None,
    ) -> None:
        """Declare the task; nothing is read yet.

        Args:
            context_days: ≥ 0, known days of a window; the protocol has 2 and 7, and 0 for a synthesis.
            horizon: ≥ 1, half-hours to forecast.
            unit: what a train item is: `user` (a household, by λ windows), `window`, or `disjoint`.
            windows_per_user: λ ≥ 1, windows that a household contributes to a batch; of `user` only.
            train_stride: ≥ 1, half-hours between (possible) starts of train windows; 48 makes all forecasts
                begin at midnight, as in the test. Not of `disjoint`.
            eval_stride: ≥ 1, half-hours between validation or test windows; 144 is the protocol.
            val_households: 0 … 497, households of the 498 that validate instead of training.
            batch_size: ≥ 1, train items of a batch.
            num_workers: ≥ 0, loader processes.
            data_dir: folder that holds `smartmeter/edrp622_halfhourly.npz`; None = the environment
                variable LIGHTNING_DP_DATA, or a cache folder of the user where that is unset.
            task: what is to be predicted; None = the forecast of the last `horizon` steps.

        Raises:
            ValueError: a count is out of range, or the unit is unknown.
        """
        self.check_count("context_days", context_days, least=0)
        super().__init__(
            context_length=context_days * _STEPS_PER_DAY,
            horizon=horizon,
            batch_size=batch_size,
            num_workers=num_workers,
            task=task,
        )
        check_train_item(unit)
        self.check_count("windows_per_user", windows_per_user)
        self.check_count("train_stride", train_stride)
        self.check_count("eval_stride", eval_stride)
        if not 0 <= val_households < _NUM_TRAIN:
            raise ValueError(
                f"SmartMeter.val_households is {val_households}; it must lie between 0 and {_NUM_TRAIN - 1}: "
                f"they are taken from the {_NUM_TRAIN} train households."
            )
        self.dataset_id = "edrp622-halfhourly"
        self.value_unit = "kWh"
        self.channel_names = ["load"]
        self.num_covariates = NUM_CALENDAR_FEATURES
        self.steps_per_day = _STEPS_PER_DAY
        self.unit: TrainItem = unit
        self.windows_per_user = windows_per_user
        self.rows_per_unit = windows_per_user if unit == "user" else 1
        self.train_stride = train_stride
        self.eval_stride = eval_stride
        self.val_households = val_households
        self.data_dir = data_dir

    def files(self) -> list[Path]:
        """What it reads."""
        return [data_folder(self.data_dir) / _FILE]

    def read_splits(self) -> Splits:
        (path,) = self.files()
        kwh, written, names = _read(path)
        stamps = pd.DatetimeIndex(written)
        if self.length > len(kwh):
            raise ValueError(
                f"SmartMeter's windows have {self.length} half-hours and its series {len(kwh)}: shorten "
                "context_days or horizon."
            )
        calendar = calendar_features(stamps)
        order = np.random.default_rng(0).permutation(_NUM_HOUSEHOLDS)
        val_start = _NUM_TRAIN - self.val_households
        self._test_households = order[_NUM_TRAIN:]
        self._names = names
        self._whole = ArraySeries(
            list(kwh.T[:, :, None]),
            names=[] if names is None else names,
            stamps=stamps,
            covariates=calendar,
            text=_STAMPS if written.dtype.kind == "U" else "",
        )

        def store(households: np.ndarray) -> ArrayStore:
            return ArrayStore(
                [kwh[:, [household]] for household in households],
                covariates=calendar,
                min_length=self.length,
                channel_names=self.channel_names,
                source=str(path),
            )

        def windows(households: np.ndarray) -> WindowDataset:
            return WindowDataset(
                store(households),
                context_length=self.context_length,
                horizon=self.horizon,
                stride=self.eval_stride,
                task=self.task,
                fixed_masks=True,
            )

        return Splits(
            train=make_train_items(
                store(order[:val_start]),
                unit=self.unit,
                context_length=self.context_length,
                horizon=self.horizon,
                windows_per_user=self.windows_per_user,
                train_stride=self.train_stride,
                task=self.task,
            ),
            val=windows(order[val_start:_NUM_TRAIN]) if self.val_households else None,
            test=windows(order[_NUM_TRAIN:]),
        )

    def window_labels(self, index: int) -> tuple[Any, Any]:
        """The household, as the file calls it, and the (L,) stamps of test window `index`."""
        number, start = self.test_dataset.locate(index)
        whole = self.whole_series()
        return whole.names[self._test_households[number]], whole.stamps(0, start=start, length=self.length)

    def whole_series(self) -> ArraySeries:
        """All households to their last reading and beyond.

        Raises:
            ValueError: the file doesn't say which household is which.
        """
        self.setup()
        if self._names is None:
            raise ValueError(
                f"{self.files()[0]} has no array 'household' with the names of the {_NUM_HOUSEHOLDS} "
                "households, without which nothing predicted can be said to be theirs: make it again with it."
            )
        return self._whole

    def privacy_unit(self) -> PrivacyUnit:
        """The household with all its readings, or one window of it."""
        self.setup()
        return describe_train_items(
            self.train_dataset,
            unit=self.unit,
            length=self.length,
            train_stride=self.train_stride,
            user="household",
        )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, list[Any] | None]:
    """(T, N) float32 kWh, T stamps as they are written, and N households' names, if the file has them."""
    if not path.exists():
        raise ValueError(
            f"{path} is missing: it can't be downloaded (its terms don't allow passing it on), so make it "
            "from the R package phovafer (arrays kwh [4416, 622], timestamp, household) and put it there, "
            "or point LIGHTNING_DP_DATA (or SmartMeter.data_dir) at a folder that holds smartmeter/ with "
            "it."
        )
    file = load_npz(
        path, "kwh", "timestamp", "household", fix="it is damaged or another file; make it again."
    )
    absent = [name for name in ("kwh", "timestamp") if name not in file]
    if absent:
        raise ValueError(f"{path} has no array {absent[0]!r}: it is not the file that is meant.")
    kwh, stamps = file["kwh"], file["timestamp"]
    if kwh.shape != (_NUM_STEPS, _NUM_HOUSEHOLDS) or len(stamps) != _NUM_STEPS:
        raise ValueError(
            f"{path} has kwh of shape {kwh.shape} and {len(stamps)} stamps where "
            f"({_NUM_STEPS}, {_NUM_HOUSEHOLDS}) is meant: it is damaged or another file."
        )
    return kwh.astype(np.float32), stamps, list(file["household"]) if "household" in file else None
