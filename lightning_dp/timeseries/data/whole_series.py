"""Series up to their last reading and beyond: what a forecast of the future and a filling of gaps read.

Shapes: N series, C channels, F covariates, L steps of a window, B windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import pandas as pd

from lightning_dp.timeseries.data.calendar import NUM_CALENDAR_FEATURES, calendar_features


class WholeSeries(ABC):
    """N series, all parts of the split together, whose rows may be asked for beyond their end.

    Attributes:
        names: (N,) of the series, in the input's own spelling and type.
        first_rows, end_rows: (N,) int64, rows from the first reading to one past the last.
        note: what the user has to know of the stamps; else "".
        csv_ids, csv_stamps: whether these are cells of CSV files, in which numbers are text too.
    """

    names: Sequence[Any]
    first_rows: np.ndarray
    end_rows: np.ndarray
    note: str = ""
    csv_ids: bool = False
    csv_stamps: bool = False

    def __len__(self) -> int:
        """N."""
        return len(self.first_rows)

    @abstractmethod
    def read(
        self, series_index: np.ndarray, *, starts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read windows.

        Args:
            series_index: (B,) numbers of series.
            starts: (B,) first rows within them, ≥ 0.
            length: L, rows of a window.

        Returns:
            (B, L, C) float32 values, NaN where nothing was observed or the series has ended; (B, L, F)
            float32 covariates, NaN where they aren't known.
        """

    @abstractmethod
    def row_of(self, stamp: pd.Timestamp) -> np.ndarray:
        """(N,) the row of each series that this stamp is of, or the first one after it."""

    @abstractmethod
    def stamps(self, series: int, *, start: int, length: int) -> Any:
        """(L,) stamps of rows from `start` on, as the input writes them: an index or array of pandas."""


@final
class ArraySeries(WholeSeries):
    """Series in memory that share their stamps."""

    def __init__(
        self,
        series: Sequence[np.ndarray],
        *,
        names: Sequence[Any],
        stamps: pd.DatetimeIndex,
        covariates: np.ndarray,
        text: str = "",
    ) -> None:
        """Keep them.

        Args:
            series: N of (T, C), NaN = missing.
            names: (N,).
            stamps: (T,), equally far apart.
            covariates: (T, F) that all share; the calendar's come first, and alone can be continued.
            text: strftime's pattern where the input's stamps are text; else they stay what they are.
        """
        self._series = [np.asarray(one, dtype=np.float32) for one in series]
        self.names = list(names)
        known = [np.flatnonzero(~np.isnan(one).all(axis=1)) for one in self._series]
        self.first_rows = np.array([rows[0] if len(rows) else 0 for rows in known], dtype=np.int64)
        self.end_rows = np.array([rows[-1] + 1 if len(rows) else 0 for rows in known], dtype=np.int64)
        self._first, self._step = stamps[0], stamps[1] - stamps[0]
        self._covariates = covariates
        self._text = text

    def read(
        self, series_index: np.ndarray, *, starts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = starts[:, None] + np.arange(length)  # (B, L)
        num_steps = len(self._covariates)
        inside = rows < num_steps
        reachable = np.minimum(rows, num_steps - 1)
        values = np.stack([self._series[one][own] for one, own in zip(series_index, reachable, strict=True)])
        covariates = self._covariates[reachable].astype(np.float32)  # (B, L, F)
        calendar = calendar_features(self._at(rows.ravel())).reshape(*rows.shape, -1)
        beyond = np.full_like(covariates, np.nan)
        beyond[..., :NUM_CALENDAR_FEATURES] = calendar
        return (
            np.where(inside[..., None], values, np.float32(np.nan)),
            np.where(inside[..., None], covariates, beyond),
        )

    def row_of(self, stamp: pd.Timestamp) -> np.ndarray:
        row = -((self._first - stamp.tz_localize(None)) // self._step)
        return np.full(len(self), row, dtype=np.int64)

    def stamps(self, series: int, *, start: int, length: int) -> Any:
        found = self._at(np.arange(start, start + length))
        return pd.Index(found.strftime(self._text), dtype=object) if self._text else found

    def _at(self, rows: np.ndarray) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self._first + rows * self._step)
