"""Windows of one or several series as model input, gathered a whole batch at a time.

Scope: slicing, and the mask that says what is to be predicted. Where a series comes from and how it is
split belong to the stores and data modules beside this file.

Shapes: C channels, F covariates, L = context_length + horizon, B rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.series import ArrayStore, SeriesStore
from lightning_dp.timeseries.masks import Mask


class WindowDataset(Dataset[Batch]):
    """Every `stride`-th window of one or several series; one item is one window.

    Windows lie inside the usable rows of each series. Items are ordered by series, then by start.

    A `DataLoader` that is given `collate_fn=WindowDataset.collate` fetches a batch with one gather
    per tensor (`__getitems__`), so batches cost microseconds per row; a list of items works as well.
    """

    def __init__(
        self,
        series: np.ndarray | Sequence[np.ndarray] | SeriesStore,
        *,
        covariates: np.ndarray | Sequence[np.ndarray] | None = None,
        context_length: int,
        horizon: int,
        stride: int = 1,
        clock_offset: int | None = None,
        first_row: int = 0,
        end_row: int | None = None,
        channel_names: Sequence[str] | None = None,
        source: str = "series",
        task: Mask | None = None,
        fixed_masks: bool = False,
    ) -> None:
        """Check the series and index their windows.

        Args:
            series: a store, which may be empty; or arrays as `ArrayStore` takes them, in which case the
                arguments `covariates`, `first_row`, `end_row`, `channel_names` and `source` are its own.
            covariates: of arrays.
            context_length: ≥ 0, known time steps at the start of a window.
            horizon: ≥ 1, time steps to predict at its end.
            stride: ≥ 1, time steps between neighbouring windows.
            clock_offset: windows start where the store's clock is clock_offset + k · stride, so that no
                series' own beginning moves them; None = at the first usable row and every `stride` on.
            first_row: of arrays.
            end_row: of arrays.
            channel_names: of arrays.
            source: of arrays.
            task: what is to be predicted; None = the forecast of the last `horizon` steps.
            fixed_masks: for evaluation: window i always has the same mask, whatever the batch; else masks
                are drawn afresh from torch's global generator.

        Raises:
            ValueError: a length below 1, or what `ArrayStore` refuses.
        """
        _check_lengths(context_length=context_length, horizon=horizon, stride=stride)
        length = context_length + horizon
        self._store = _as_store(
            series,
            covariates=covariates,
            min_length=length,
            first_row=first_row,
            end_row=end_row,
            channel_names=channel_names,
            source=source,
        )
        self._targets = _Targets(task, length=length, horizon=horizon, channels=self._store.num_channels)
        self._fixed_masks = fixed_masks
        first, count = window_starts(self._store, length=length, stride=stride, clock_offset=clock_offset)
        self._series_index = torch.repeat_interleave(torch.arange(len(count)), count)  # (N,)
        before = count.cumsum(0) - count  # windows of the series before
        rank = torch.arange(len(self._series_index)) - before[self._series_index]
        self._starts = first[self._series_index] + rank * stride  # (N,) within the series

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Batch:
        """One window without the batch dimension: (L, C), (L, C), (L, C), (L, F)."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        rows = self.__getitems__([index % len(self)])
        return Batch(
            values=rows["values"][0],
            observed=rows["observed"][0],
            target=rows["target"][0],
            covariates=rows["covariates"][0],
        )

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Batch:
        """The windows at `indices` as one batch; an empty list gives a batch of no rows."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)  # (B,)
        target = self._targets.fixed(chosen) if self._fixed_masks else self._targets.draw(len(chosen))
        return _read(self._store, self._series_index[chosen], starts=self._starts[chosen], target=target)

    def locate(self, index: int) -> tuple[int, int]:
        """(series number, first row within that series) of the window at `index`."""
        return int(self._series_index[index]), int(self._starts[index])

    @staticmethod
    def collate(items: Any) -> Batch:
        """Items → batch; a batch that `__getitems__` has already built passes through."""
        return collate(items)


class UserWindowDataset(Dataset[Batch]):
    """One item is one user: `windows_per_user` windows at fresh random starts of their series.

    The collated batch has `windows_per_user` consecutive rows per user, which is what a clipper that
    is told `rows_per_unit=windows_per_user` expects. Every user counts the same, however long their series
    is. Starts are uniform with replacement and drawn from torch's global generator, as are masks, so
    `DataLoader` workers draw differently from each other.
    """

    def __init__(
        self,
        series: Sequence[np.ndarray] | SeriesStore,
        *,
        covariates: np.ndarray | Sequence[np.ndarray] | None = None,
        context_length: int,
        horizon: int,
        windows_per_user: int,
        stride: int = 1,
        clock_offset: int | None = None,
        channel_names: Sequence[str] | None = None,
        source: str = "series",
        task: Mask | None = None,
    ) -> None:
        """Check the series, one per user. Arguments and errors as `WindowDataset`, and:

        Args:
            series: a store, every series of which holds a window; or one array (T, C) per user.
            covariates: of arrays.
            context_length: ≥ 0, known time steps at the start of a window.
            horizon: ≥ 1, time steps to predict at its end.
            windows_per_user: λ ≥ 1, rows that one user fills in a batch.
            stride: ≥ 1, time steps between possible starts.
            clock_offset: as of `WindowDataset`.
            channel_names: of arrays.
            source: of arrays.
            task: what is to be predicted; None = the forecast of the last `horizon` steps.
        """
        _check_lengths(context_length=context_length, horizon=horizon, stride=stride)
        if windows_per_user < 1:
            raise ValueError(
                f"windows_per_user is {windows_per_user}; every user needs at least 1 window per batch."
            )
        length = context_length + horizon
        self._store = _as_store(
            series,
            covariates=covariates,
            min_length=length,
            first_row=0,
            end_row=None,
            channel_names=channel_names,
            source=source,
        )
        self._targets = _Targets(task, length=length, horizon=horizon, channels=self._store.num_channels)
        self.windows_per_user = windows_per_user
        self._stride = stride
        self._first, self._num_starts = window_starts(
            self._store, length=length, stride=stride, clock_offset=clock_offset
        )  # (N,)
        assert bool((self._num_starts > 0).all()), "a user without a window has no row in a batch"

    def __len__(self) -> int:
        return len(self._num_starts)

    def __getitem__(self, index: int) -> Batch:
        """One user: (λ, L, C), (λ, L, C), (λ, L, C), (λ, L, F) with λ = windows_per_user."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Batch:
        """The users at `indices` as one batch of len(indices) · λ rows, each user's rows together."""
        # Looking the number up, rather than trusting it, refuses an index that is out of range.
        users = torch.arange(len(self))[torch.as_tensor(indices, dtype=torch.int64)]  # (U,)
        users = users.repeat_interleave(self.windows_per_user)  # (B,) with B = U·λ
        # float64 keeps the draw uniform to 2^-53 even for series of millions of steps.
        draws = torch.rand(len(users), dtype=torch.float64) * self._num_starts[users]
        starts = self._first[users] + draws.long() * self._stride
        return _read(self._store, users, starts=starts, target=self._targets.draw(len(users)))

    @staticmethod
    def collate(items: Any) -> Batch:
        """Items → batch of flat rows; a batch that `__getitems__` has already built passes through."""
        return collate(items)


def window_starts(
    store: SeriesStore, *, length: int, stride: int, clock_offset: int | None
) -> tuple[Tensor, Tensor]:
    """Where windows of `length` steps may start: first, first + stride, … in each series.

    Args:
        store: N series.
        length: L ≥ 1, time steps of a window.
        stride: ≥ 1, time steps between starts.
        clock_offset: starts lie where the store's clock is clock_offset + k · stride; None = at the first
            usable row and every `stride` on.

    Returns:
        (N,) int64 first starts and (N,) int64 how many there are, 0 where no window fits.
    """
    first = store.first_rows.long()
    if clock_offset is not None:
        first = first + (clock_offset - store.clock - first) % stride
    room = store.end_rows - length - first
    return first, torch.where(room < 0, 0, room // stride + 1)


def collate(items: Any) -> Batch:
    """Join dataset items into one batch; an already joined batch passes through.

    Args:
        items: what a `DataLoader` hands to its `collate_fn`: a `Batch` made by `__getitems__`, or a
            list of items, windows (L, C) to be stacked or users (λ, L, C) to be laid end to end.
    """
    if isinstance(items, dict):
        return items  # type: ignore[return-value]
    join = torch.stack if items[0]["values"].dim() == 2 else torch.cat
    return Batch(
        values=join([item["values"] for item in items]),
        observed=join([item["observed"] for item in items]),
        target=join([item["target"] for item in items]),
        covariates=join([item["covariates"] for item in items]),
    )


class _Targets:
    """The positions to be predicted: fixed ones of a forecast, drawn ones of any other task."""

    def __init__(self, task: Mask | None, *, length: int, horizon: int, channels: int) -> None:
        self._task = task
        self._length, self._channels = length, channels
        steps = torch.arange(length) >= length - horizon  # (L,)
        self._forecast = steps[:, None].expand(length, channels)  # (L, C)
        self.fixed(torch.zeros(1, dtype=torch.int64))  # a task that doesn't fit these windows says so now

    def draw(self, num_windows: int) -> Tensor:
        """(B, L, C) bool from torch's global generator."""
        if self._task is None:
            return self._forecast.repeat(num_windows, 1, 1)
        return self._task.draw(num_windows, length=self._length, num_channels=self._channels)

    def fixed(self, indices: Tensor) -> Tensor:
        """(B, L, C) bool, always the same for the same window."""
        if self._task is None:
            return self._forecast.repeat(len(indices), 1, 1)
        return self._task.draw_fixed(indices, length=self._length, num_channels=self._channels)


def _read(store: SeriesStore, series_index: Tensor, *, starts: Tensor, target: Tensor) -> Batch:
    values, covariates = store.read(series_index, starts=starts, length=target.shape[1])
    return Batch(
        values=values.nan_to_num(nan=0.0),  # (B, L, C)
        observed=~values.isnan(),
        target=target,
        covariates=covariates,  # (B, L, F)
    )


def _as_store(
    series: np.ndarray | Sequence[np.ndarray] | SeriesStore,
    *,
    covariates: np.ndarray | Sequence[np.ndarray] | None,
    min_length: int,
    first_row: int,
    end_row: int | None,
    channel_names: Sequence[str] | None,
    source: str,
) -> SeriesStore:
    if isinstance(series, SeriesStore):
        assert covariates is None, "a store has its own covariates"
        assert (first_row, end_row) == (0, None), "a store has its own usable rows"
        return series
    assert covariates is not None, "arrays need covariates: (T, 0) for none"
    return ArrayStore(
        series,
        covariates=covariates,
        min_length=min_length,
        first_row=first_row,
        end_row=end_row,
        channel_names=channel_names,
        source=source,
    )


def _check_lengths(*, context_length: int, horizon: int, stride: int) -> None:
    for field, value, least in (
        ("context_length", context_length, 0),
        ("horizon", horizon, 1),
        ("stride", stride, 1),
    ):
        if value < least:
            raise ValueError(f"{field} is {value}; it counts time steps and must be at least {least}.")
