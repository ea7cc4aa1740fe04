"""Where windows are cut from: N series with their covariates, in memory or elsewhere.

Values stay in original units: nothing here learns a statistic from the data.

Shapes: N series, T_i time steps of series i, C channels, F covariates, L steps of a window, B windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor


class SeriesStore(ABC):
    """N series, read a batch of windows at a time.

    Attributes:
        first_rows, end_rows: (N,) int64; windows of series i lie in its rows [first, end).
        clock: (N,) int64, the number that row 0 of series i has on a clock which all series share.
        num_channels: C.
    """

    first_rows: Tensor
    end_rows: Tensor
    clock: Tensor
    num_channels: int

    def __len__(self) -> int:
        """N, the number of series."""
        return len(self.first_rows)

    @abstractmethod
    def read(self, series_index: Tensor, *, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Read windows.

        Args:
            series_index: (B,) numbers of series.
            starts: (B,) first rows within them.
            length: L, rows of a window.

        Returns:
            (B, L, C) float32 values, NaN where nothing was observed, and (B, L, F) float32 covariates, in
            memory that belongs to the caller.
        """


@final
class ArrayStore(SeriesStore):
    """Series in memory, laid end to end, so that a batch is one gather whatever it is made of."""

    def __init__(
        self,
        series: np.ndarray | Sequence[np.ndarray],
        *,
        covariates: np.ndarray | Sequence[np.ndarray],
        min_length: int,
        first_row: int = 0,
        end_row: int | None = None,
        channel_names: Sequence[str] | None = None,
        source: str = "series",
    ) -> None:
        """Check and copy the series.

        Args:
            series: (T, C), or one such array per series (lengths may differ, C may not); float,
                original units, NaN = missing.
            covariates: (T, F) in [−1, 1] shared by all series, or one array per series; no NaN.
            min_length: usable rows that every series needs.
            first_row: ≥ 0, first usable row of each series.
            end_row: one past the last usable row of each series; None = the series' own end.
            channel_names: C names for error messages.
            source: what the data is called in error messages: a file name, for instance.

        Raises:
            ValueError: a series is too short, not numeric or infinite somewhere, a channel has no
                observation at all, covariates don't fit or leave [−1, 1].
        """
        arrays = [series] if isinstance(series, np.ndarray) else list(series)
        if not arrays:
            raise ValueError(f"{source} holds no series; at least 1 is needed: check how it was split.")
        shared = isinstance(covariates, np.ndarray)
        known = [np.asarray(covariates)] * len(arrays) if shared else list(covariates)
        if len(known) != len(arrays):
            raise ValueError(
                f"{source} has {len(arrays)} series but {len(known)} arrays of covariates; "
                "pass one array per series, or one (T, F) array that all share."
            )
        ends: list[int] = []
        clean: list[np.ndarray] = []
        for number, array in enumerate(arrays):
            label = source if len(arrays) == 1 else f"{source}, series {number}"
            values = _as_float(array, channel_names=channel_names, label=label)
            if clean and values.shape[1] != clean[0].shape[1]:
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
            if end - first_row < min_length:
                raise ValueError(
                    f"{label} is too short: {max(end - first_row, 0)} usable rows where one window needs "
                    f"context_length + horizon = {min_length}; shorten the window or drop the series."
                )
            _check_channels(values[first_row:end], channel_names=channel_names, label=label)
            if known[number].ndim != 2 or len(known[number]) < len(values):
                raise ValueError(
                    f"{label} has covariates of shape {known[number].shape} for {len(values)} rows; "
                    "they must be (T, F) with one row for every time step."
                )
            clean.append(values)
            ends.append(end)
        distinct = known[:1] if shared else known
        for array in distinct:
            # NaN fails the comparison as well, on purpose.
            if array.size and not (np.abs(array) <= 1 + 1e-6).all():
                raise ValueError(
                    f"{source} has covariates outside [−1, 1] or missing; "
                    "scale them by public bounds and fill the gaps."
                )
        self.first_rows = torch.full((len(arrays),), first_row)
        self.end_rows = torch.tensor(ends)
        self.clock = torch.zeros(len(arrays), dtype=torch.int64)
        self.num_channels = clean[0].shape[1]
        self._values = torch.from_numpy(np.concatenate(clean))  # (ΣT, C)
        self._covariates = torch.from_numpy(np.concatenate(distinct).astype(np.float32))
        self._value_offsets = _offsets(clean)
        self._covariate_offsets = torch.zeros(len(arrays), dtype=torch.int64) if shared else _offsets(known)

    def read(self, series_index: Tensor, *, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        steps = starts[:, None] + torch.arange(length)  # (B, L)
        values = self._values[steps + self._value_offsets[series_index, None]]  # (B, L, C)
        covariates = self._covariates[steps + self._covariate_offsets[series_index, None]]  # (B, L, F)
        return values, covariates


def _offsets(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.cumsum([0] + [len(array) for array in arrays[:-1]]))


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
