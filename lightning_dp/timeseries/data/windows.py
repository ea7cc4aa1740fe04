"""Windows of one or several series as model input, gathered a whole batch at a time.

Scope: slicing. Values stay in original units: nothing here learns a statistic from the data. Where a
series comes from (files, simulators) and how it is split belong to the data modules beside this file.

Shapes: T time steps of a series, C channels, F covariates, L = context_length + horizon, B rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_dp.timeseries.batch import Batch


class WindowDataset(Dataset[Batch]):
    """Every `stride`-th forecast window of one or several series; one item is one window.

    Windows lie inside the rows [first_row, end_row) of each series and start at first_row,
    first_row + stride, … Items are ordered by series, then by start.

    A `DataLoader` that is given `collate_fn=WindowDataset.collate` fetches a batch with one gather
    per tensor (`__getitems__`), so batches cost microseconds per row; a list of items works as well.
    """

    def __init__(
        self,
        series: np.ndarray | Sequence[np.ndarray],
        *,
        covariates: np.ndarray | Sequence[np.ndarray],
        context_length: int,
        horizon: int,
        stride: int = 1,
        first_row: int = 0,
        end_row: int | None = None,
        channel_names: Sequence[str] | None = None,
        source: str = "series",
    ) -> None:
        """Check the series and index their windows.

        Args:
            series: (T, C), or one such array per series (lengths may differ, C may not); float,
                original units, NaN = missing.
            covariates: (T, F) in [−1, 1] shared by all series, or one array per series; no NaN.
            context_length: ≥ 1, known time steps at the start of a window.
            horizon: ≥ 1, time steps to predict at its end.
            stride: ≥ 1, time steps between neighbouring windows.
            first_row: ≥ 0, first usable row of each series.
            end_row: one past the last usable row of each series; None = the series' own end.
            channel_names: C names for error messages.
            source: what the data is called in error messages: a file name, for instance.

        Raises:
            ValueError: a series is too short, not numeric or infinite somewhere, a channel has no
                observation at all, covariates don't fit or leave [−1, 1].
        """
        _check_lengths(context_length=context_length, horizon=horizon, stride=stride)
        self._store = _SeriesStore(
            series,
            covariates=covariates,
            context_length=context_length,
            horizon=horizon,
            first_row=first_row,
            end_row=end_row,
            channel_names=channel_names,
            source=source,
        )
        length = context_length + horizon
        starts = [
            torch.arange(first, end - length + 1, stride, dtype=torch.int64)
            for first, end in self._store.usable_rows
        ]
        self._series_index = torch.repeat_interleave(
            torch.arange(len(starts)), torch.tensor([len(start) for start in starts])
        )  # (N,)
        self._starts = torch.cat(starts)  # (N,) within the series

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Batch:
        """One window without the batch dimension: (L, C), (L, C), (L, C), (L, F)."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        rows = self.__getitems__([index])
        return _map(rows, lambda tensor: tensor[0])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Batch:
        """The windows at `indices` as one batch; an empty list gives a batch of no rows."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)  # (B,)
        return self._store.gather(self._series_index[chosen], starts=self._starts[chosen])

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
    is told `rows_per_unit=windows_per_user` expects. Starts are uniform with replacement and drawn
    from torch's global generator, so `DataLoader` workers draw differently from each other.
    """

    def __init__(
        self,
        series: Sequence[np.ndarray],
        *,
        covariates: np.ndarray | Sequence[np.ndarray],
        context_length: int,
        horizon: int,
        windows_per_user: int,
        channel_names: Sequence[str] | None = None,
        source: str = "series",
    ) -> None:
        """Check the series; one array (T, C) per user. Arguments and errors as `WindowDataset`.

        Args:
            series: one array (T, C) per user; float, original units, NaN = missing.
            covariates: (T, F) shared by all users, or one array per user.
            context_length: ≥ 1, known time steps at the start of a window.
            horizon: ≥ 1, time steps to predict at its end.
            windows_per_user: λ ≥ 1, rows that one user fills in a batch.
            channel_names: C names for error messages.
            source: what the data is called in error messages.
        """
        _check_lengths(context_length=context_length, horizon=horizon, stride=1)
        if windows_per_user < 1:
            raise ValueError(
                f"windows_per_user is {windows_per_user}; every user needs at least 1 window per batch."
            )
        self._store = _SeriesStore(
            series,
            covariates=covariates,
            context_length=context_length,
            horizon=horizon,
            first_row=0,
            end_row=None,
            channel_names=channel_names,
            source=source,
        )
        self.windows_per_user = windows_per_user
        length = context_length + horizon
        self._num_starts = torch.tensor(
            [end - first - length + 1 for first, end in self._store.usable_rows]
        )  # (N,)

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
        return self._store.gather(users, starts=draws.long())

    @staticmethod
    def collate(items: Any) -> Batch:
        """Items → batch of flat rows; a batch that `__getitems__` has already built passes through."""
        return collate(items)


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


class _SeriesStore:
    """All series end to end in one tensor, so that a batch is one gather whatever it is made of."""

    def __init__(
        self,
        series: np.ndarray | Sequence[np.ndarray],
        *,
        covariates: np.ndarray | Sequence[np.ndarray],
        context_length: int,
        horizon: int,
        first_row: int,
        end_row: int | None,
        channel_names: Sequence[str] | None,
        source: str,
    ) -> None:
        arrays = [series] if isinstance(series, np.ndarray) else list(series)
        if not arrays:
            raise ValueError(f"{source} holds no series; at least 1 is needed: check how it was split.")
        length = context_length + horizon
        shared = isinstance(covariates, np.ndarray)
        known = [np.asarray(covariates)] * len(arrays) if shared else list(covariates)
        if len(known) != len(arrays):
            raise ValueError(
                f"{source} has {len(arrays)} series but {len(known)} arrays of covariates; "
                "pass one array per series, or one (T, F) array that all share."
            )
        self.usable_rows: list[tuple[int, int]] = []
        clean: list[np.ndarray] = []
        for number, array in enumerate(arrays):
            label = source if len(arrays) == 1 else f"{source}, series {number}"
            values = _as_float(array, channel_names=channel_names, label=label)
            if values.shape[1] != clean[0].shape[1] if clean else False:
                raise ValueError(
                    f"{label} has {values.shape[1]} channels where series 0 has {clean[0].shape[1]}; "
                    "all series need the same channels: fill an absent one with NaN."
                )
            end = len(values) if end_row is None else end_row
            if end > len(values):
                raise ValueError(
                    f"{label} has {len(values)} rows where its windows are to end at row {end}; "
                    "the file is truncated or end_row is too large."
                )
            if end - first_row < length:
                raise ValueError(
                    f"{label} is too short: {max(end - first_row, 0)} usable rows where one window needs "
                    f"context_length + horizon = {context_length} + {horizon} = {length}; "
                    "shorten the window or drop the series."
                )
            _check_channels(values[first_row:end], channel_names=channel_names, label=label)
            if known[number].ndim != 2 or len(known[number]) < len(values):
                raise ValueError(
                    f"{label} has covariates of shape {known[number].shape} for {len(values)} rows; "
                    "they must be (T, F) with one row for every time step."
                )
            clean.append(values)
            self.usable_rows.append((first_row, end))
        distinct = known[:1] if shared else known
        for array in distinct:
            # NaN fails the comparison as well, on purpose.
            if array.size and not (np.abs(array) <= 1 + 1e-6).all():
                raise ValueError(
                    f"{source} has covariates outside [−1, 1] or missing; "
                    "scale them by public bounds and fill the gaps."
                )
        joined = torch.from_numpy(np.concatenate(clean))  # (ΣT, C)
        self._observed = ~joined.isnan()
        self._values = torch.nan_to_num_(joined, nan=0.0)
        self._covariates = torch.from_numpy(np.concatenate(distinct).astype(np.float32))
        self._value_offsets = _offsets(clean)
        self._covariate_offsets = torch.zeros(len(arrays), dtype=torch.int64) if shared else _offsets(known)
        self._steps = torch.arange(length)
        self._is_target = (self._steps >= context_length)[:, None].expand(length, joined.shape[1])

    def gather(self, series_index: Tensor, *, starts: Tensor) -> Batch:
        """Rows (B,) of series and first time steps within them → a batch of B windows."""
        steps = starts[:, None] + self._steps  # (B, L)
        rows = steps + self._value_offsets[series_index, None]
        known_rows = steps + self._covariate_offsets[series_index, None]
        return Batch(
            values=self._values[rows],  # (B, L, C)
            observed=self._observed[rows],
            target=self._is_target.repeat(len(starts), 1, 1),
            covariates=self._covariates[known_rows],  # (B, L, F)
        )


def _offsets(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.cumsum([0] + [len(array) for array in arrays[:-1]]))


def _map(batch: Batch, function: Any) -> Batch:
    return Batch(
        values=function(batch["values"]),
        observed=function(batch["observed"]),
        target=function(batch["target"]),
        covariates=function(batch["covariates"]),
    )


def _check_lengths(*, context_length: int, horizon: int, stride: int) -> None:
    for field, value in (("context_length", context_length), ("horizon", horizon), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{field} is {value}; it counts time steps and must be at least 1.")


def _as_float(array: np.ndarray, *, channel_names: Sequence[str] | None, label: str) -> np.ndarray:
    """A float32 copy of (T, C); refuses text, which would otherwise surface as a torch type error."""
    if array.ndim != 2:
        raise ValueError(f"{label} has shape {array.shape}; a series is (time steps, channels).")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        for channel in range(array.shape[1]):
            for row, value in enumerate(array[:, channel]):
                try:
                    float(value)
                except (TypeError, ValueError):
                    raise ValueError(
                        f"{label}, column {_name(channel_names, channel)}, row {row} holds {value!r}; every "
                        "value must be a number or NaN for a missing one: clean or drop the column."
                    ) from None
    values = array.astype(np.float32)
    if np.isinf(values).any():
        row, channel = np.argwhere(np.isinf(values))[0]
        raise ValueError(
            f"{label}, column {_name(channel_names, channel)}, row {row} holds {array[row, channel]!r}; "
            "values must be finite: use NaN for a missing one."
        )
    return values


def _check_channels(values: np.ndarray, *, channel_names: Sequence[str] | None, label: str) -> None:
    empty = np.isnan(values).all(axis=0)
    if empty.any():
        channel = int(empty.argmax())
        raise ValueError(
            f"{label}, column {_name(channel_names, channel)} has no value in any of its {len(values)} "
            "usable rows; a channel needs at least one observation: drop the column or the series."
        )


def _name(channel_names: Sequence[str] | None, channel: int) -> str:
    return repr(channel_names[channel]) if channel_names else f"number {channel}"
