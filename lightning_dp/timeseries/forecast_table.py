"""Forecasts past the last reading, and fillings of real gaps, of a run: as a file or as a frame of pandas.

They are post-processing of the weights and cost no ε. The rows that they continue are private inputs of
whoever asks: no ε covers those, and the report beside a file says so.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lightning_dp.protocols import HasTask, StatesFrequency, provides
from lightning_dp.runs.abilities import ForecastRequest, SampleRequest
from lightning_dp.runs.loaded_run import LoadedRun, TrainedRun
from lightning_dp.timeseries.continuation import (
    Plan,
    Quantiles,
    Samples,
    Values,
    fill,
    plan_forecast,
    plan_gaps,
)
from lightning_dp.timeseries.data.whole_series import WholeSeries
from lightning_dp.timeseries.export import TableWriter, schema_of
from lightning_dp.timeseries.forecast_data import opened
from lightning_dp.timeseries.masks import Forecast, Mask, Mixture, Synthesis
from lightning_dp.timeseries.table_samples import claims_of, write_with_report
from lightning_dp.told import told_place

_SHOWN = 5
USUAL_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request with all that was read for it."""

    plan: Plan
    whole: WholeSeries
    schema: Any
    frames: Iterator[tuple[int, pd.DataFrame]]
    sentences: list[str]


def write_forecast(module: Any, request: ForecastRequest, *, output: Path, run: LoadedRun) -> list[str]:
    """Write a table, and a report of what may be claimed of it beside it.

    Args:
        module: a `TimeSeriesDiffusion`.
        request: what to predict.
        output: a .csv or .parquet file.
        run: that the module is of.

    Raises:
        ValueError: the request can't be met; nothing was written.
    """
    assert isinstance(run, TrainedRun)
    TableWriter(output)  # complains about its ending before anything is read
    with _asked(module, request, run=run) as asked:
        claims = claims_of(run.account, reads_rows=True)
        claims["statement"] += (
            " Those rows are private inputs of whoever asked for it, and it holds their ids: hand it on as "
            "you would hand on the rows themselves."
        )
        lines = write_with_report(
            SampleRequest(output=output, seed=request.seed),
            frames=asked.frames,
            total=len(asked.plan),
            unit="windows",
            what=(
                f"{len(asked.plan):,} windows with their gaps filled"
                if request.fill_missing
                else f"Forecasts of {len(asked.plan):,} series"
            ),
            run=run,
            facts={
                "kind": "imputation of gaps" if request.fill_missing else "forecast",
                "contains_private_inputs": True,
                "rows_of": "the run's own data" if request.data is None else "whoever asked",
                "left_out": {str(name): why for name, why in asked.plan.left_out.items()},
            },
            claims=claims,
        )
        left_out = _left_out(asked, where=f"{output.name}.privacy.json names them")
        return [*lines, *asked.sentences, *left_out]


def forecast_frame(module: Any, request: ForecastRequest, *, run: LoadedRun) -> pd.DataFrame:
    """The same as a frame, whose `attrs` hold `left_out` (series → why) and `statement`.

    Ids and stamps have the dtypes of the frame that was given; those of a Parquet file are what
    `pandas.read_parquet` makes of it, those of a CSV what `pandas.read_csv` makes of it unless that would
    change them ("007" stays text).
    """
    with _asked(module, request, run=run) as asked:
        frames = [frame for _, frame in asked.frames]
        names = asked.schema
        left_out = _left_out(asked, where="attrs['left_out'] names them")
    if not frames:
        raise ValueError(f"there is nothing to predict. {' '.join(left_out)}".strip())
    frame = pd.concat(frames, ignore_index=True)
    for column, is_csv in (
        (names.id_column, asked.whole.csv_ids),
        (names.time_column, asked.whole.csv_stamps),
    ):
        if isinstance(request.data, pd.DataFrame) and column in request.data:
            frame[column] = frame[column].astype(request.data[column].dtype)
        elif is_csv:
            frame[column] = _as_pandas_reads(frame[column])
    frame.attrs = {
        "left_out": asked.plan.left_out,
        "statement": claims_of(run.account, reads_rows=True)["statement"],
    }
    for sentence in [*asked.plan.notes, *left_out]:
        warnings.warn(sentence, stacklevel=4)
    return frame


@contextlib.contextmanager
def _asked(module: Any, request: ForecastRequest, *, run: LoadedRun) -> Iterator[_Asked]:
    values = _values(request)
    tasks = _tasks(run.data)
    horizon = _horizon(tasks, run=run, fill_missing=request.fill_missing)
    generator = torch.Generator(module.device)
    if request.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.seed)
    with opened(run, request.data) as data:
        _check_fits(data, module=module)
        whole = data.whole_series()
        length = module.net.length
        if request.fill_missing:
            plan = plan_gaps(whole, length=length)
        else:
            plan = plan_forecast(whole, length=length, horizon=horizon, start=_stamp(request.start, data))
        schema = schema_of(data)
        sentences = [*plan.notes]
        if request.data is not None:
            sentences.append(
                "ids that the model was not trained on are predicted like all others: it knows a series by "
                "its context alone."
            )
        frames = fill(
            module,
            plan,
            whole=whole,
            ahead=not request.fill_missing,
            values=values,
            wide=request.wide,
            schema=schema,
            generator=generator,
        )
        if not len(plan):
            asked = _Asked(plan=plan, whole=whole, schema=schema, frames=frames, sentences=sentences)
            what = "no gap to fill" if request.fill_missing else "no window to predict"
            left_out = _left_out(asked, where="")
            raise ValueError(" ".join([f"there is {what}, so nothing was written.", *plan.notes, *left_out]))
        yield _Asked(plan=plan, whole=whole, schema=schema, frames=frames, sentences=sentences)


def _values(request: ForecastRequest) -> Values:
    if request.quantiles is not None and request.num_samples is not None:
        raise ValueError("quantiles and samples are given: choose one of them.")
    if request.num_samples is not None:
        return Samples(request.num_samples)
    return Quantiles(USUAL_QUANTILES if request.quantiles is None else request.quantiles)


def _tasks(data: Any) -> list[Mask]:
    """What the run was trained for, the parts of a mixture one by one."""
    task = data.task if provides(data, HasTask) else None
    if task is None:
        return [Forecast(data.horizon)]
    return list(task.tasks) if isinstance(task, Mixture) else [task]


def _horizon(tasks: list[Mask], *, run: LoadedRun, fill_missing: bool) -> int:
    """Steps to forecast; 0 where gaps are filled.

    Raises:
        ValueError: the run was not trained for that.
    """
    named = " | ".join(map(str, tasks))
    forecasts = [task.horizon for task in tasks if isinstance(task, Forecast)]
    imputes = any(not isinstance(task, Forecast | Synthesis) for task in tasks)
    if fill_missing:
        if imputes:
            return 0
        raise ValueError(
            f"{run.folder} was trained to {named}, not to fill gaps: leave --fill-missing out, or train with "
            "a task such as PointImputation."
        )
    if forecasts:
        return max(forecasts)
    hint = "give --fill-missing to fill real gaps" if imputes else "use 'lightning-dp sample' for new series"
    raise ValueError(f"{run.folder} was trained to {named}, not to forecast: {hint}.")


def _check_fits(data: Any, *, module: Any) -> None:
    net = module.net
    for what, own, trained in (
        ("context_length + horizon", data.length, net.length),
        ("channels", data.num_channels, net.num_channels),
        ("covariates", data.num_covariates, net.num_covariates),
    ):
        if own != trained:
            raise ValueError(
                f"--data has {own} {what}, but the run was trained with {trained}: read it as the run's own "
                "data was."
            )


def _stamp(start: str | pd.Timestamp | None, data: Any) -> pd.Timestamp | None:
    """The first stamp to predict; None after each series' last reading."""
    if start is None or (isinstance(start, str) and start.strip().upper() == "LAST"):
        return None
    if not isinstance(start, str):
        return pd.Timestamp(start)
    written = data.reading.time_format if provides(data, StatesFrequency) else None
    try:
        if written is not None and "%" in written:
            with contextlib.suppress(ValueError):
                return pd.Timestamp(datetime.strptime(start, written))
        return pd.Timestamp(datetime.fromisoformat(start))
    except ValueError:
        raise ValueError(
            f"--from is {start!r}; it must be LAST, or a stamp such as 2024-01-31 or 2024-01-31 12:00."
        ) from None


def _left_out(asked: _Asked, *, where: str) -> list[str]:
    """A sentence for each reason, with how many and which."""
    by_reason: dict[str, list[int]] = {}
    numbers = {name: number for number, name in enumerate(asked.whole.names)}
    for name, why in asked.plan.left_out.items():
        by_reason.setdefault(why.partition(":")[0], []).append(numbers[name])
    lines = []
    for kind, found in by_reason.items():
        name = asked.whole.names[found[0]]
        shown = ", ".join(told_place(one, str(asked.whole.names[one])) for one in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        detail = asked.plan.left_out[name].partition(":")[2].strip()
        lines.append(
            f"left out {len(found)} of {len(asked.whole)} series: {kind} ({shown}{more}"
            + (f"; the first: {detail}" if detail else "")
            + ")"
            + (f"; {where}." if where else ".")
        )
    return lines


def _as_pandas_reads(cells: pd.Series) -> pd.Series:
    """Cells (S,) of a CSV as `pandas.read_csv` would have them, or as text where that would change one."""
    read = pd.read_csv(
        io.StringIO("\n".join(["cell", *(_quoted(cell) for cell in cells)])), keep_default_na=False
    )
    return read["cell"] if (read["cell"].astype(str).to_numpy() == cells.to_numpy()).all() else cells


def _quoted(cell: str) -> str:
    doubled = cell.replace('"', '""')
    return f'"{doubled}"'
