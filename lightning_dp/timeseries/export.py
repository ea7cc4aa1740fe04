"""Tables of what a model made: windows as rows of id, time and channels, in CSV or Parquet.

Shapes: N windows, L time steps, C channels, F covariates.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lightning_dp.privacy.release import PublicBounds
from lightning_dp.protocols import HasExtraCovariates, HasLayout, LabelsWindows, provides
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.calendar import NUM_CALENDAR_FEATURES, calendar_features

FORMATS = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the columns of an exported table are called: as those of the table that was trained on.

    Attributes:
        id_column: of the series' names.
        time_column: of the stamps.
        channel_names: C names, in the model's order.
    """

    id_column: str
    time_column: str
    channel_names: Sequence[str]


def schema_of(data: Any, *, labelled: bool = True) -> Schema:
    """The schema of a data module: that of its `layout` where it has one, else columns `id` and `date`.

    A wide table, one column a customer, is exported as a long one, one row a reading.

    Args:
        data: a data module.
        labelled: whether rows get names and stamps. Numbers of series and steps, which nothing can be joined
            by, stand in columns `series` and `step` instead.
    """
    layout = data.layout if provides(data, HasLayout) else None
    if not labelled:
        return Schema(id_column="series", time_column="step", channel_names=list(data.channel_names))
    return Schema(
        id_column="id" if layout is None else layout.id_column,
        time_column="date" if layout is None else layout.time_column,
        channel_names=list(data.channel_names),
    )


def public_covariates(
    data: Any, *, stamps: pd.DatetimeIndex, num_covariates: int, conditions: Mapping[str, str]
) -> np.ndarray:
    """The covariates of stamps from the calendar and from what the user asks for; reads no data.

    Args:
        data: a data module; its `layout.covariates` or `extra_covariates` says what there is beside the
            calendar.
        stamps: T time stamps, wall-clock time.
        num_covariates: F of the model.
        conditions: a value for every covariate that is not the calendar's, kept for all steps.

    Returns:
        (T, F) float32 in [−1, 1].

    Raises:
        ValueError: a condition is missing, unknown or out of range.
    """
    extra = data.layout.covariates if provides(data, HasLayout) else None
    extra = data.extra_covariates if provides(data, HasExtraCovariates) else extra
    numeric: Mapping[str, Any] = {} if extra is None else extra.numeric
    categorical: Mapping[str, Sequence[str]] = {} if extra is None else extra.categorical
    names = [*numeric, *categorical]
    missing = [name for name in names if name not in conditions]
    unknown = [name for name in conditions if name not in names]
    if missing:
        raise ValueError(
            f"the model is conditioned on {missing[0]!r}, which the calendar doesn't know: give --condition "
            f"{missing[0]}=VALUE."
        )
    if unknown:
        known = f"only on the calendar and {', '.join(names)}" if names else "on nothing but the calendar"
        raise ValueError(f"--condition names {unknown[0]!r}, but the model is conditioned {known}.")
    columns = [calendar_features(stamps)]  # (T, 6)
    for name, (lower, upper) in numeric.items():
        try:
            scaled = PublicBounds(lower=lower, upper=upper).normalise(np.array([float(conditions[name])]))[0]
        except ValueError:
            scaled = np.nan
        if not abs(scaled) <= 1:
            raise ValueError(
                f"--condition {name}={conditions[name]} must be a number between {lower} and {upper}."
            )
        columns.append(np.full((len(stamps), 1), scaled, dtype=np.float32))
    for name, categories in categorical.items():
        if conditions[name] not in categories:
            raise ValueError(f"--condition {name}={conditions[name]} must be one of {', '.join(categories)}.")
        one_hot = [float(category == conditions[name]) for category in categories]
        columns.append(np.tile(np.array(one_hot, dtype=np.float32), (len(stamps), 1)))
    covariates = np.concatenate(columns, axis=1)
    if covariates.shape[1] != num_covariates:
        raise ValueError(
            f"the model is conditioned on {num_covariates} covariates, and {covariates.shape[1]} are known "
            f"without data ({NUM_CALENDAR_FEATURES} of the calendar, {covariates.shape[1] - 6} others): its "
            "data module has to declare the rest as extra_covariates."
        )
    return covariates


def synthesise(
    module: Any,
    *,
    starts: Sequence[pd.Timestamp],
    length: int,
    step: str | pd.Timedelta,
    covariates: Mapping[pd.Timestamp, np.ndarray],
    schema: Schema,
    generator: torch.Generator | None = None,
    chunk: int = 256,
) -> Iterator[pd.DataFrame]:
    """Synthetic windows, some at a time; reads nothing but the model's weights.

    Args:
        module: a trained `TimeSeriesDiffusion`.
        starts: (N,) first stamp of each window.
        length: L, steps of a window.
        step: pandas' frequency between steps.
        covariates: (L, F) of each different start.
        schema: names of the columns.
        generator: for reproducible draws, on the module's device.
        chunk: windows in memory at a time.

    Yields:
        Frames of whole windows, with ids `synthetic-1` … `synthetic-N`.
    """
    num_channels = len(schema.channel_names)
    digits = len(str(len(starts)))
    for first in range(0, len(starts), chunk):
        some = starts[first : first + chunk]
        shape = (len(some), length, num_channels)
        batch = Batch(
            values=torch.zeros(shape),
            observed=torch.zeros(shape, dtype=torch.bool),
            target=torch.ones(shape, dtype=torch.bool),
            covariates=torch.from_numpy(np.stack([covariates[start] for start in some])).float(),
        )
        batch = move_data_to_device(batch, module.device)
        windows = module.sample(batch, num_samples=1, generator=generator)[:, 0]  # (b, L, C)
        ids = [f"synthetic-{number + 1:0{digits}d}" for number in range(first, first + len(some))]
        stamps = {start: pd.date_range(start, periods=length, freq=step) for start in set(some)}
        yield _frame(
            windows.cpu().numpy(),
            ids=np.repeat(ids, length),
            stamps=np.concatenate([stamps[start].to_numpy() for start in some]),
            schema=schema,
        )


def predict(
    module: Any,
    *,
    batches: Iterable[Batch],
    num_windows: int | None,
    num_samples: int,
    labels: "WindowLabels",
    schema: Schema,
    generator: torch.Generator | None = None,
) -> Iterator[pd.DataFrame]:
    """Draws of what windows are missing, a batch at a time; reads those windows.

    Args:
        module: a trained `TimeSeriesDiffusion`.
        batches: windows in order.
        num_windows: how many; None = all.
        num_samples: n ≥ 1 draws of each.
        labels: whose windows they are, and when.
        schema: names of the columns.
        generator: for reproducible draws, on the module's device.

    Yields:
        Frames of the steps at which something was to be predicted; `sample` numbers the draws from 1.
        Only what was drawn has a value: where a channel was visible, or missing and not asked for, it is NaN.
    """
    done = 0
    for batch in batches:
        left = len(batch["values"]) if num_windows is None else num_windows - done
        if left <= 0:
            return
        chosen = move_data_to_device(_first(batch, left), module.device)
        draws = module.sample(chosen, num_samples=num_samples, generator=generator).cpu().numpy()
        target = chosen["target"].cpu().numpy()  # (b, L, C)
        draws = np.where(target[:, None], draws, np.nan)  # (b, n, L, C): no reading of the data goes out
        asked = target.any(axis=2)  # (b, L)
        for row, steps in enumerate(asked):
            name, stamps = labels(done + row)
            for sample in range(num_samples):
                frame = _frame(
                    draws[row, sample, steps],
                    ids=np.repeat(name, int(steps.sum())),
                    stamps=pd.Series(stamps)[steps].array,
                    schema=schema,
                )
                frame.insert(2, "sample", sample + 1)
                yield frame
        done += len(asked)


class WindowLabels:
    """Name and stamps of each window: the data module's own, or its series' number and step numbers.

    A data module that can tell has `window_labels(index) -> (name, stamps)`, for test windows.

    Args:
        data: a data module that has been set up.

    Attributes:
        known: whether the data module can tell.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self.known = provides(data, LabelsWindows)

    def __call__(self, index: int) -> tuple[Any, Any]:
        """The series' name and the (L,) stamps of window `index`."""
        if self.known:
            return self._data.window_labels(index)
        series, first = self._data.test_dataset.locate(index)
        return series, np.arange(first, first + self._data.length)


class TableWriter:
    """Writes frames one after the other to a .csv or .parquet file that appears only when it is complete.

    Args:
        path: of the file; its ending says what it is.
        before: is told where the complete table lies just before it takes the place of an older one, which is
            gone by then: what it writes about the table is never beside another one.
    """

    def __init__(self, path: Path, *, before: Callable[[Path], None] | None = None) -> None:
        if path.suffix not in FORMATS:
            raise ValueError(
                f"--output {path} ends in {path.suffix!r}; it must be one of {', '.join(FORMATS)}."
            )
        self._path = path
        self._before = before
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._parquet: pq.ParquetWriter | None = None
        self.num_rows = 0

    def __enter__(self) -> "TableWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, frame: pd.DataFrame) -> None:
        """Append rows; all frames have the same columns."""
        if self._path.suffix == ".csv":
            frame.to_csv(self._temporary, mode="a", header=not self.num_rows, index=False)
        else:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if self._parquet is None:
                self._parquet = pq.ParquetWriter(self._temporary, table.schema)
            self._parquet.write_table(table)
        self.num_rows += len(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parquet is not None:
            self._parquet.close()
        try:
            if kind is None and self.num_rows:
                if self._before is not None:
                    self._path.unlink(missing_ok=True)
                    self._before(self._temporary)
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _frame(windows: np.ndarray, *, ids: np.ndarray, stamps: Any, schema: Schema) -> pd.DataFrame:
    """(…, C) values as rows, the last dimension as columns."""
    values = windows.reshape(-1, windows.shape[-1])
    channels = {name: values[:, column] for column, name in enumerate(schema.channel_names)}
    return pd.DataFrame({schema.id_column: ids, schema.time_column: stamps, **channels})


def _first(batch: Batch, most: int) -> Batch:
    def cut(value: Tensor) -> Tensor:
        return value[:most]

    return Batch(
        values=cut(batch["values"]),
        observed=cut(batch["observed"]),
        target=cut(batch["target"]),
        covariates=cut(batch["covariates"]),
    )
