"""Electricity Transformer Temperature (ETTh1, ETTh2, ETTm1, ETTm2) as a datamodule.

Seven channels from two Chinese transformer stations, July 2016 to June 2018: six loads and the oil
temperature. Zhou et al., Informer (AAAI 2021); data CC BY-ND 4.0, github.com/zhouhaoyi/ETDataset.

Borders are the standard ones: 12, 4 and 4 months of 30 days for train, validation and test; the last
two start `context_length` rows early so that their first forecast falls on their first own row.
Values stay in original units.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lightning_dp import data_files
from lightning_dp.data_files import data_folder
from lightning_dp.privacy.units import PrivacyUnit, count_windows_per_event
from lightning_dp.timeseries.data.base import Splits, WindowDataModule
from lightning_dp.timeseries.data.calendar import NUM_CALENDAR_FEATURES, calendar_features
from lightning_dp.timeseries.data.whole_series import ArraySeries
from lightning_dp.timeseries.data.windows import WindowDataset
from lightning_dp.timeseries.masks import Mask

ETTName = Literal["ETTh1", "ETTh2", "ETTm1", "ETTm2"]

_CHANNELS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
_UPSTREAM = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
_STAMPS = "%Y-%m-%d %H:%M:%S"  # as in all four files
_ROWS_PER_HOUR = {"h": 1, "m": 4}
_TRAIN_HOURS, _VAL_HOURS, _TEST_HOURS = 8_640, 11_520, 14_400
# The upstream repository states ETTm2 only by its git object name, SHA-1 of "blob SIZE\0CONTENT".
_CHECKSUMS = {
    "ETTh1": "sha256:f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "ETTh2": "sha256:a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
    "ETTm1": "sha256:6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
    "ETTm2": "git-blob:f9d46027c987d442d2d8f81308d1d8c4d1d35db8",
}


class ETT(WindowDataModule):
    """One of the four ETT series as windows of context and horizon.

    ETT is a single series: a user is undefined, so the unit is the window, and what one event costs
    follows from `privacy_unit().windows_per_event`. Covariates are the 6 calendar features.

    Attributes:
        public: True: anyone may see the series, so figures that draw it may be sent to W&B, and the protocol
            may be the published one, in which train rows are the context of the first test windows and
            standardise its errors. An ε on this series says what it would be on a private one.
    """

    public = True

    def __init__(
        self,
        name: ETTName = "ETTh1",
        *,
        context_length: int = 96,
        horizon: int = 24,
        batch_size: int = 64,
        num_workers: int = 0,
        train_stride: int = 1,
        eval_stride: int = 1,
        channels: list[str] | None = None,
        data_dir: str | None = None,
        task: Mask | None = None,
    ) -> None:
        """Declare the task; nothing is read or downloaded yet.

        Args:
            name: which series.
            context_length: ≥ 1, known time steps of a window.
            horizon: ≥ 1, time steps to forecast.
            batch_size: ≥ 1, windows of a batch.
            num_workers: ≥ 0, loader processes; gathering is cheap, 0 is usually the fastest.
            train_stride: ≥ 1, steps between train windows; context_length + horizon makes them disjoint.
            eval_stride: ≥ 1, steps between validation and test windows; 1 is the protocol.
            channels: the columns to use, in this order; None = all seven.
            data_dir: folder that holds `ett/NAME.csv`; None = the environment variable
                LIGHTNING_DP_DATA, or a cache folder of the user where that is unset.
            task: what is to be predicted; None = the forecast of the last `horizon` steps.

        Raises:
            ValueError: an unknown name or channel, or a count below 1.
        """
        super().__init__(
            context_length=context_length,
            horizon=horizon,
            batch_size=batch_size,
            num_workers=num_workers,
            task=task,
        )
        if name not in get_args(ETTName):
            raise ValueError(f"ETT.name is {name!r}; it must be one of {', '.join(get_args(ETTName))}.")
        self.check_count("train_stride", train_stride)
        self.check_count("eval_stride", eval_stride)
        self.channel_names = list(_CHANNELS) if channels is None else list(channels)
        unknown = [channel for channel in self.channel_names if channel not in _CHANNELS]
        if unknown or not self.channel_names or len(set(self.channel_names)) < len(self.channel_names):
            raise ValueError(
                f"ETT.channels is {channels!r}; choose from {', '.join(_CHANNELS)}, each at most once."
            )
        self.name: str = name
        self.dataset_id = name
        self.train_stride = train_stride
        self.eval_stride = eval_stride
        self.data_dir = data_dir
        self.num_covariates = NUM_CALENDAR_FEATURES
        self._rows_per_hour = _ROWS_PER_HOUR[name[3]]
        self.steps_per_day = 24 * self._rows_per_hour

    def prepare_data(self) -> None:
        """Make sure that the file is there; downloads and verifies it where it is missing."""
        ensure_file(self.name, folder=data_folder(self.data_dir))

    def files(self) -> list[Path]:
        """What it reads."""
        return [data_folder(self.data_dir) / "ett" / f"{self.name}.csv"]

    def read_splits(self) -> Splits:
        path = ensure_file(self.name, folder=data_folder(self.data_dir))
        values, stamps = read_ett_csv(path, channels=self.channel_names)
        train_end, val_end, test_end = (
            hours * self._rows_per_hour for hours in (_TRAIN_HOURS, _VAL_HOURS, _TEST_HOURS)
        )
        covariates = calendar_features(stamps)

        def windows(first_row: int, end_row: int, *, stride: int, fixed_masks: bool = True) -> WindowDataset:
            return WindowDataset(
                values,
                covariates=covariates,
                context_length=self.context_length,
                horizon=self.horizon,
                stride=stride,
                first_row=first_row,
                end_row=end_row,
                channel_names=self.channel_names,
                source=str(path),
                task=self.task,
                fixed_masks=fixed_masks,
            )

        splits = Splits(
            train=windows(0, train_end, stride=self.train_stride, fixed_masks=False),
            val=windows(self._early(train_end), val_end, stride=self.eval_stride),
            test=windows(self._early(val_end), test_end, stride=self.eval_stride),
        )
        # Last, so that a hand-edited file is told which line or column is wrong, not only that one is.
        _check_content(path.read_bytes(), name=self.name, where=str(path))
        self._train_rows = values[:train_end]
        self._values, self._stamps = values, stamps
        return splits

    def window_labels(self, index: int) -> tuple[str, Any]:
        """The series and the (L,) stamps of test window `index`, as the file writes them."""
        _, start = self.test_dataset.locate(index)
        return self.name, self.whole_series().stamps(0, start=start, length=self.length)

    def whole_series(self) -> ArraySeries:
        """The one series to the file's end and beyond."""
        self.setup()
        return ArraySeries(
            [self._values],
            names=[self.name],
            stamps=self._stamps,
            covariates=calendar_features(self._stamps),
            text=_STAMPS,
        )

    def read_metric_scale(self) -> tuple[Tensor, Tensor]:
        """Of the train rows, as in every published result: they are public."""
        # float64: sums of 8,640 float32 rows would move the standardised metrics in the fourth digit.
        rows = self._train_rows.astype(np.float64)
        return torch.from_numpy(rows.mean(axis=0)).float(), torch.from_numpy(rows.std(axis=0)).float()

    def privacy_unit(self) -> PrivacyUnit:
        """The window; overlapping windows share events, and `windows_per_event` says how many."""
        self.setup()
        touched = count_windows_per_event(window_length=self.length, stride=self.train_stride)
        touched = min(touched, len(self.train_dataset))
        return PrivacyUnit(
            name="window",
            num_units=len(self.train_dataset),
            windows_per_event=touched,
            description=(
                f"one window of {self.length} time steps of {self.name}, taken every {self.train_stride} "
                f"step(s); one time step lies in up to {touched} windows; a single series has no users to "
                "protect"
            ),
        )

    def _early(self, border: int) -> int:
        if self.context_length > border:
            raise ValueError(
                f"ETT.context_length is {self.context_length}; it reaches back beyond the start of the data "
                f"for a split that begins at row {border}: shorten it."
            )
        return border - self.context_length


def ensure_file(name: str, *, folder: Path) -> Path:
    """The path of `folder/ett/NAME.csv`, downloaded and verified where it is missing.

    Raises:
        ValueError: it is missing and can't be had, or what came is not the upstream file.
    """
    return data_files.ensure_file(
        folder / "ett" / f"{name}.csv",
        url=f"{_UPSTREAM}/{name}.csv",
        check=lambda content, where: _check_content(content, name=name, where=where),
    )


def read_ett_csv(path: Path, *, channels: list[str]) -> tuple[np.ndarray, pd.DatetimeIndex]:
    """Read the chosen columns of an ETT file.

    Returns:
        (T, C) float32 values in original units and the T time stamps.

    Raises:
        ValueError: a column is missing, a cell is empty or not a number, a stamp is not a date. Lines
            are counted as an editor does: the header is line 1.
    """
    # Read as text: pandas would turn words such as "NA" or "null" into NaN without a trace.
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("date", *channels):
        if column not in table.columns:
            raise ValueError(
                f"{path} has no column {column!r} (it has {', '.join(map(str, table.columns))}); "
                f"an ETT file has the columns date, {', '.join(_CHANNELS)}."
            )
    columns = []
    for channel in channels:
        numbers = pd.to_numeric(table[channel], errors="coerce")
        wrong = ~np.isfinite(numbers.to_numpy(dtype=np.float64))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{path}, line {row + 2}, column {channel!r} holds {table[channel].iloc[row]!r}; ETT has a "
                "finite number in every cell: download the file again."
            )
        columns.append(numbers.to_numpy(dtype=np.float32))
    stamps = pd.to_datetime(table["date"], errors="coerce")
    if stamps.isna().any():
        row = int(stamps.isna().to_numpy().argmax())
        raise ValueError(
            f"{path}, line {row + 2}, column 'date' holds {table['date'].iloc[row]!r}; every row needs a "
            "date such as 2016-07-01 00:00:00: download the file again."
        )
    return np.stack(columns, axis=1), pd.DatetimeIndex(stamps)


def _check_content(content: bytes, *, name: str, where: str) -> None:
    method, _, expected = _CHECKSUMS[name].partition(":")
    content = content.replace(b"\r\n", b"\n")  # git on Windows may have changed the line ends
    if method == "sha256":
        actual = hashlib.sha256(content).hexdigest()
    else:
        # Not a security boundary: SHA-1 is how git names the upstream file.
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise ValueError(
            f"{where} has the {method} checksum {actual} where the published {name}.csv has {expected}; "
            "it is damaged or was edited: delete it to download it again."
        )
