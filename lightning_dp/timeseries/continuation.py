"""Windows past the last reading, and windows around real gaps, filled in by a trained model.

Shapes: N series, B windows, L steps, C channels, n samples, Q columns of a value.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.whole_series import WholeSeries
from lightning_dp.timeseries.export import Schema

_CHUNK = 256
_DRAWS_BEYOND_A_LEVEL = 10


class Values(ABC):
    """What is written of n draws: some of them, or quantiles."""

    column: str
    labels: list[Any]

    @abstractmethod
    def num_draws(self, usual: int) -> int:
        """n, where `usual` is what the model was set to."""

    @abstractmethod
    def of(self, draws: np.ndarray) -> np.ndarray:
        """(Q, …) of draws (n, …)."""


@final
class Quantiles(Values):
    """Quantiles of as many draws as tell the outermost of them."""

    column = "quantile"

    def __init__(self, levels: Sequence[float]) -> None:
        if not levels or len(set(levels)) < len(levels) or not all(0 < level < 1 for level in levels):
            raise ValueError(
                f"quantiles are {', '.join(map(str, levels)) or 'none'}; give different numbers strictly "
                "between 0 and 1, such as 0.1 0.5 0.9."
            )
        self.labels = [float(level) for level in levels]

    def num_draws(self, usual: int) -> int:
        outermost = min(min(level, 1 - level) for level in self.labels)
        return max(usual, int(np.ceil(_DRAWS_BEYOND_A_LEVEL / outermost)))

    def of(self, draws: np.ndarray) -> np.ndarray:
        return np.quantile(draws, self.labels, axis=0)


@final
class Samples(Values):
    """The draws themselves, numbered from 1."""

    column = "sample"

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"the number of samples is {number}; at least 1 draw of each window is needed.")
        self.labels = list(range(1, number + 1))

    def num_draws(self, usual: int) -> int:
        return len(self.labels)

    def of(self, draws: np.ndarray) -> np.ndarray:
        return draws


@dataclass(kw_only=True)
class Plan:
    """Which windows are to be filled in.

    Attributes:
        series, starts: (B,) int64, the windows.
        begins, ends: (B,) int64, within each window the steps [begin, end) whose values are wanted.
        left_out: the series' name → why nothing is written of it.
        notes: sentences for the user.
    """

    series: np.ndarray
    starts: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    left_out: dict[Any, str]
    notes: list[str]

    def __len__(self) -> int:
        """B."""
        return len(self.series)


def plan_forecast(whole: WholeSeries, *, length: int, horizon: int, start: pd.Timestamp | None) -> Plan:
    """The window of each series that ends `horizon` steps after its last reading, or after a stamp.

    Series that don't fill the window's context, or whose covariates end before it does, are left out.

    Args:
        whole: N series.
        length: L = context + horizon.
        horizon: steps to predict.
        start: the first stamp to predict, for all series, whatever follows it; None = after each one's last
            reading.
    """
    context = length - horizon
    first = whole.end_rows.copy() if start is None else whole.row_of(start)  # (N,) first row to predict
    starts = first - context
    left_out: dict[Any, str] = {}
    kept = []
    for number in range(len(whole)):
        readings = int(min(first[number], whole.end_rows[number]) - whole.first_rows[number])
        why = ""
        if readings <= 0:
            why = "no reading before the forecast"
        elif starts[number] < whole.first_rows[number]:
            steps = max(int(first[number] - whole.first_rows[number]), 0)
            why = f"too short: {steps} steps before the forecast, of the {context} that the model reads"
        if not why:
            values, covariates = whole.read(np.array([number]), starts=starts[[number]], length=length)
            if np.isnan(values[0, :context]).all(axis=0).any():
                why = f"no reading in the {context} steps before the forecast, in one channel or more"
            elif np.isnan(covariates).any():
                why = (
                    f"its covariates aren't known for all {horizon} steps of the forecast: append rows with "
                    "the covariates and an empty target"
                )
        if why:
            left_out[whole.names[number]] = why
        else:
            kept.append(number)
    chosen = np.array(kept, dtype=np.int64)
    return Plan(
        series=chosen,
        starts=starts[chosen],
        begins=np.full(len(chosen), context),
        ends=np.full(len(chosen), length),
        left_out=left_out,
        notes=[whole.note] if whole.note else [],
    )


def plan_gaps(whole: WholeSeries, *, length: int) -> Plan:
    """Windows over all steps without a value, each step in the window whose middle is nearest.

    Args:
        whole: N series; gaps are looked for between the first reading and the last.
        length: L.
    """
    left_out: dict[Any, str] = {}
    found: list[tuple[int, int, int, int]] = []
    blind = 0
    for number in range(len(whole)):
        first, end = int(whole.first_rows[number]), int(whole.end_rows[number])
        if end - first < length:
            left_out[whole.names[number]] = f"too short: {end - first} steps, of the {length} of a window"
            continue
        starts = [*range(first, end - length, max(1, length // 2)), end - length]
        middles = [(start + after + length) // 2 for start, after in pairwise(starts)]
        borders = [first, *middles, end]  # neighbours share what both hold, half and half
        for start, begin, stop in zip(starts, borders, borders[1:], strict=False):
            values, covariates = whole.read(np.array([number]), starts=np.array([start]), length=length)
            missing = np.isnan(values[0]).any(axis=1)  # (L,)
            if not missing[begin - start : stop - start].any():
                continue
            if np.isnan(values[0]).all(axis=0).any() or np.isnan(covariates).any():
                blind += int(missing[begin - start : stop - start].sum())
                continue
            found.append((number, start, begin - start, stop - start))
    columns = np.array(found, dtype=np.int64).reshape(-1, 4).T
    notes = [whole.note] if whole.note else []
    if blind:
        notes.append(
            f"{blind} missing steps lie in gaps longer than a window of {length} steps, of which nothing is "
            "known, and were left empty."
        )
    return Plan(
        series=columns[0],
        starts=columns[1],
        begins=columns[2],
        ends=columns[3],
        left_out=left_out,
        notes=notes,
    )


def fill(
    module: Any,
    plan: Plan,
    *,
    whole: WholeSeries,
    ahead: bool,
    values: Values,
    wide: bool,
    schema: Schema,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Draw what the plan asks for.

    Args:
        module: a trained `TimeSeriesDiffusion`.
        plan: the windows.
        whole: the series that they lie in.
        ahead: a forecast, of all channels and whatever was read at its steps; else what is missing.
        values: what is written of the draws.
        wide: one row a stamp with a column for each quantile or draw; else one row for each of them.
        schema: names of the columns.
        generator: for reproducible draws, on the module's device.

    Yields:
        Numbers of windows with a frame of theirs. Only what was drawn has a value, else it is NaN.
    """
    length = module.net.length
    num_draws = values.num_draws(module.num_samples)
    for first in range(0, len(plan), _CHUNK):
        part = slice(first, first + _CHUNK)
        series, starts = plan.series[part], plan.starts[part]
        read, covariates = whole.read(series, starts=starts, length=length)
        steps = np.arange(length)
        if ahead:
            target = np.repeat((steps >= plan.begins[part, None])[..., None], read.shape[2], axis=2)
        else:
            target = np.isnan(read)
        batch = Batch(
            values=torch.from_numpy(np.nan_to_num(read)),
            observed=torch.from_numpy(~np.isnan(read) & ~target),
            target=torch.from_numpy(target),
            covariates=torch.from_numpy(covariates),
        )
        batch = move_data_to_device(batch, module.device)
        drawn = module.sample(batch, num_samples=num_draws, generator=generator).cpu().numpy()  # (b, n, L, C)
        wanted = target & ((steps >= plan.begins[part, None]) & (steps < plan.ends[part, None]))[..., None]
        for row in range(len(series)):
            asked = wanted[row].any(axis=1)  # (L,)
            written = values.of(drawn[row][:, asked])  # (Q, S, C)
            written = np.where(wanted[row][asked], written, np.nan)
            stamps = whole.stamps(int(series[row]), start=int(starts[row]), length=length)
            stamps = pd.Series(stamps)[asked].array
            yield (
                1,
                _table(written, whole.names[series[row]], stamps, values=values, wide=wide, schema=schema),
            )


def _table(
    written: np.ndarray, name: Any, stamps: Any, *, values: Values, wide: bool, schema: Schema
) -> pd.DataFrame:
    """(Q, S, C) as rows: one a stamp, or one a stamp and label."""
    count, steps, _ = written.shape
    channels = list(schema.channel_names)
    if wide:
        columns = {
            f"{channel}_{'q' if values.column == 'quantile' else ''}{label:g}": written[number, :, index]
            for index, channel in enumerate(channels)
            for number, label in enumerate(values.labels)
        }
        return pd.DataFrame({schema.id_column: np.repeat(name, steps), schema.time_column: stamps, **columns})
    order = np.repeat(np.arange(steps), count)
    rows = written.transpose(1, 0, 2).reshape(-1, len(channels))  # labels of a stamp together
    label = (
        values.column
        if values.column not in (*channels, schema.id_column, schema.time_column)
        else (f"{values.column}_")
    )
    return pd.DataFrame(
        {
            schema.id_column: np.repeat(name, len(order)),
            schema.time_column: pd.Series(stamps).take(order).array,
            label: np.tile(values.labels, steps),
            **{channel: rows[:, index] for index, channel in enumerate(channels)},
        }
    )
