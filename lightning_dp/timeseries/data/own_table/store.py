"""Windows of a converted table, read from disk a batch at a time.

Shapes: N series, C channels, F covariates, L steps of a window, B windows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_dp.timeseries.data.series import SeriesStore


@final
class FileStore(SeriesStore):
    """Series end to end in one .npy file of (ΣT, C + numeric + categorical columns) fp64.

    The file is mapped for each batch and let go again: memory holds one batch, however large the file, and
    worker processes inherit a path instead of data. Covariates are the calendar, then the numeric columns,
    then one 0-or-1 covariate per category.

    Attributes:
        num_covariates: F.
    """

    def __init__(
        self,
        path: Path,
        *,
        offsets: Tensor,
        first_rows: Tensor,
        end_rows: Tensor,
        clock: Tensor,
        num_channels: int,
        num_numeric: int,
        category_sizes: Sequence[int],
        calendar: Tensor,
        calendar_start: int,
    ) -> None:
        """Describe the file; it is not opened yet.

        Args:
            path: of the file.
            offsets: (N,) int64 row of the file that is row 0 of a series.
            first_rows: (N,) int64 first usable row of a series.
            end_rows: (N,) int64 one past the last one.
            clock: (N,) int64 number of row 0 on the common clock.
            num_channels: C.
            num_numeric: numeric covariate columns.
            category_sizes: number of categories of each categorical column.
            calendar: (T, features) of the clock's steps from `calendar_start` on.
            calendar_start: see there.
        """
        self._path = path
        self._offsets = offsets
        self.first_rows = first_rows
        self.end_rows = end_rows
        self.clock = clock
        self.num_channels = num_channels
        self._num_numeric = num_numeric
        self._category_sizes = tuple(category_sizes)
        self._calendar = calendar
        self._calendar_start = calendar_start
        self.num_covariates = calendar.shape[1] + num_numeric + sum(self._category_sizes)

    def read(self, series_index: Tensor, *, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        steps = starts[:, None] + torch.arange(length)  # (B, L)
        rows = steps + self._offsets[series_index, None]
        cells = torch.from_numpy(np.load(self._path, mmap_mode="r")[rows.numpy()])  # (B, L, K)
        values = cells[..., : self.num_channels].float()
        calendar = self._calendar[steps + self.clock[series_index, None] - self._calendar_start]
        numeric = cells[..., self.num_channels : self.num_channels + self._num_numeric]
        numeric = numeric.float().nan_to_num(nan=0.0)
        parts = [calendar, numeric]
        for index, size in enumerate(self._category_sizes):
            codes = cells[..., self.num_channels + self._num_numeric + index]  # (B, L), NaN = unknown
            parts.append((codes[..., None] == torch.arange(size)).float())
        return values, torch.cat(parts, dim=2)

    def series(self, index: int) -> np.ndarray:
        """(T, C) fp64, the usable rows of one series as they were written; NaN = missing."""
        first, end = (int(self._offsets[index] + rows[index]) for rows in (self.first_rows, self.end_rows))
        return np.array(np.load(self._path, mmap_mode="r")[first:end, : self.num_channels])
