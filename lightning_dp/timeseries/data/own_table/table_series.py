"""All series of a converted table, and the rows that follow them."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import pandas as pd
import torch

from lightning_dp.timeseries.data.calendar import NUM_CALENDAR_FEATURES
from lightning_dp.timeseries.data.own_table.spelling import TableSpelling
from lightning_dp.timeseries.data.own_table.store import FileStore
from lightning_dp.timeseries.data.whole_series import WholeSeries


@final
class TableSeries(WholeSeries):
    """Series of a table, whose rows without a reading may hold covariates.

    Args:
        store: all series, from their first reading to their last.
        num_rows: (N,) rows of each in the file: those past the last reading hold covariates alone.
        names: (N,) as the converted table has them.
        spelling: of ids and stamps.
        features: calendar features (S, 6) of step numbers (S,).
        step_of: the first step at or after a stamp.
    """

    def __init__(
        self,
        store: FileStore,
        *,
        num_rows: np.ndarray,
        names: list[str],
        spelling: TableSpelling,
        features: Callable[[np.ndarray], np.ndarray],
        step_of: Callable[[pd.Timestamp], int],
    ) -> None:
        self._store = store
        self._num_rows = num_rows
        self.names = [spelling.id_of(name) for name in names]
        self._spelling = spelling
        self._features = features
        self._step_of = step_of
        self.first_rows = store.first_rows.numpy()
        self.end_rows = store.end_rows.numpy()
        self._clock = store.clock.numpy()
        self.note = spelling.stamps.note
        self.csv_ids, self.csv_stamps = spelling.csv_ids, spelling.csv_stamps

    def read(
        self, series_index: np.ndarray, *, starts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        there = np.clip(self._num_rows[series_index] - starts, 0, length)  # (B,) rows that the file has
        steps = (starts + self._clock[series_index])[:, None] + np.arange(length)  # (B, L)
        calendar = self._features(steps.ravel()).reshape(len(steps), length, -1)  # (B, L, 6)
        values = np.full((len(steps), length, self._store.num_channels), np.nan, dtype=np.float32)
        covariates = np.full((len(steps), length, self._num_covariates), np.nan, dtype=np.float32)
        covariates[..., :NUM_CALENDAR_FEATURES] = calendar
        for count in np.unique(there[there > 0]):
            rows = np.flatnonzero(there == count)
            own, known = self._store.read(
                torch.from_numpy(series_index[rows]), starts=torch.from_numpy(starts[rows]), length=int(count)
            )
            values[rows, :count] = own.numpy()
            covariates[rows, :count] = known.numpy()
        return values, covariates

    def row_of(self, stamp: pd.Timestamp) -> np.ndarray:
        return self._step_of(stamp) - self._clock

    def stamps(self, series: int, *, start: int, length: int) -> Any:
        steps = np.arange(start, start + length) + self._clock[series]
        return written(self._spelling, steps)

    @property
    def _num_covariates(self) -> int:
        return self._store.num_covariates


def written(spelling: TableSpelling, steps: np.ndarray) -> Any:
    """(S,) stamps of steps as a column of pandas."""
    return spelling.stamps.write(steps).to_pandas()
