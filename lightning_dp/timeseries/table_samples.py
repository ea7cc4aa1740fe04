"""Samples of a run on series as a table in the input's schema, with a report of what may be claimed of it.

Synthesis reads nothing but weights. Predictions read the rows that they continue or complete, and the report
says so.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from tqdm import tqdm

from lightning_dp.privacy.report import REPORT_NAME, json_ready, replace_text
from lightning_dp.privacy.report.document import PrivacyReport
from lightning_dp.privacy.report.facts import ROWS_READ
from lightning_dp.privacy.report.readable import readable_paths, write_readable
from lightning_dp.privacy.report.sections import headline_of
from lightning_dp.protocols import HasTask, LabelsWindows, StatesFrequency, provides
from lightning_dp.runs.abilities import SampleRequest
from lightning_dp.runs.loaded_run import LoadedRun, TrainedRun
from lightning_dp.timeseries.export import (
    TableWriter,
    WindowLabels,
    predict,
    public_covariates,
    schema_of,
    synthesise,
)
from lightning_dp.timeseries.masks import Synthesis
from lightning_dp.tracking.account import Account
from lightning_dp.tracking.cards import card_beside, write_data_card
from lightning_dp.tracking.croissant import NAME as CROISSANT, columns_of, file_object, write_croissant
from lightning_dp.tracking.sealed import sha256_of


def write_table(module: Any, request: SampleRequest, *, run: LoadedRun) -> list[str]:
    """Write synthetic series, of a run whose task is Synthesis, or predictions of test windows.

    Args:
        module: a `TimeSeriesDiffusion`.
        request: with a .csv or .parquet file as its output.
        run: that the module is of.

    Raises:
        ValueError: the request can't be met; nothing was written.
    """
    assert isinstance(run, TrainedRun)
    data = run.data
    synthetic = provides(data, HasTask) and isinstance(data.task, Synthesis)
    generator = torch.Generator(module.device)
    if request.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.seed)
    draw = _synthesis if synthetic else _predictions
    labelled = synthetic or provides(data, LabelsWindows)
    frames, total = draw(
        request, module=module, data=data, schema=schema_of(data, labelled=labelled), generator=generator
    )
    lines = write_with_report(
        request,
        frames=frames,
        total=total,
        unit="series" if synthetic else "windows",
        what=f"{total:,} synthetic series" if synthetic else f"Predictions of {total:,} test windows",
        run=run,
        facts={"kind": "synthesis" if synthetic else "predictions"},
        claims=claims_of(run.account, reads_rows=not synthetic),
    )
    return lines if labelled else [*lines, unlabelled(data)]


def unlabelled(data: Any) -> str:
    """What to tell whoever gets rows without names and stamps."""
    return (
        f"{type(data).__name__} has no window_labels, so rows have no ids and stamps: the columns series and "
        "step number its test series and their steps from 0 on, and join to no table."
    )


def write_with_report(
    request: SampleRequest,
    *,
    frames: Iterator[tuple[int, pd.DataFrame]],
    total: int,
    unit: Literal["series", "windows"],
    what: str,
    run: TrainedRun,
    facts: Mapping[str, Any],
    claims: Mapping[str, Any],
) -> list[str]:
    """Write frames to the request's file, and beside it what may be claimed of it.

    Args:
        request: whose output is a .csv or .parquet file.
        frames: with how many of `total` each completes.
        total: windows or series.
        unit: which of them.
        what: the table is, in a few words for people.
        run: that drew them.
        facts: further ones for the report.
        claims: see `claims_of`.

    Returns:
        What to tell the user: a line each.

    Raises:
        ValueError: there was nothing to write.
    """
    path = request.output.with_name(f"{request.output.name}.{REPORT_NAME}")
    beside = request.output.with_name(f"{request.output.name}.{CROISSANT}")
    types: dict[str, str] = {}
    content: dict[str, Any] = {}

    def say(complete: Path) -> None:
        """The report, before the table that it speaks of is there."""
        nonlocal content
        for stale in (*readable_paths(path), card_beside(path), beside):
            stale.unlink(missing_ok=True)
        content = {
            **run.account.to_dict(),
            "file": request.output.name,
            "sha256": sha256_of(complete),
            "rows": table.num_rows,
            unit: total,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": request.seed,
            "num_steps": run.module.sampler.num_steps,
            **({} if request.rank is None else {"rank": request.rank}),
            "checkpoint_sha256": run.weights_sha256,
            **facts,
            **claims,
        }
        content = run.account.signed(json_ready(content))
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        replace_text(path, text + "\n")

    with (
        TableWriter(request.output, before=say) as table,
        tqdm(total=total, unit=unit.removesuffix("s"), desc="sampling") as progress,
    ):
        for number, frame in frames:
            table.write(frame)
            types |= {str(name): _croissant_type(kind) for name, kind in frame.dtypes.items()}
            progress.update(number)
    if not table.num_rows:
        raise ValueError("there is nothing to predict in the chosen windows, so nothing was written.")
    write_readable(path, content)
    about = f"{what} in {table.num_rows:,} rows, drawn by lightning-dp from what it learnt of private data."
    write_data_card(
        card_beside(path),
        content,
        title=f"{what} after {content.get('dataset', 'a data set')}",
        about=about,
        files=[request.output.name],
        report_name=path.name,
    )
    write_croissant(
        beside,
        name=request.output.stem,
        description=f"{about} {headline_of(PrivacyReport.of(content))}.",
        distribution=[
            file_object(request.output.name, sha256=content["sha256"], size=request.output.stat().st_size)
        ],
        records=columns_of(request.output.name, types),
    )
    return [f"table    {request.output} ({table.num_rows} rows)", f"privacy  {path}", claims["statement"]]


def _croissant_type(kind: Any) -> str:
    """A column's type as Croissant calls it."""
    if pd.api.types.is_datetime64_any_dtype(kind):
        return "sc:DateTime"
    if pd.api.types.is_integer_dtype(kind):
        return "sc:Integer"
    return "sc:Float" if pd.api.types.is_float_dtype(kind) else "sc:Text"


def _synthesis(
    request: SampleRequest, *, module: Any, data: Any, schema: Any, generator: Any
) -> tuple[Iterator[tuple[int, Any]], int]:
    """Frames of synthetic series with how many each holds, and how many there will be."""
    given: Mapping[str, Any] = request.options
    days, start = given.get("days", 1), given.get("start")
    if request.num is None or request.num < 1:
        raise ValueError(f"--num is {request.num}; say how many series to synthesise, at least 1.")
    if "samples" in given:
        raise ValueError("--samples is of predictions; synthesis draws --num series.")
    if start is None:
        raise ValueError("--start is missing; synthesis needs a first stamp to take the calendar from.")
    if days < 1:
        raise ValueError(f"--days is {days}; the starts are spread over at least 1 day.")
    try:
        first = pd.Timestamp(start)
    except ValueError:
        raise ValueError(f"--start {start} is no date such as 2024-01-01.") from None
    conditions = {}
    for pair in given.get("condition", ()):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--condition {pair} is not of the form NAME=VALUE.")
        conditions[name] = value
    step = given.get("frequency") or _frequency(data)
    length, num_covariates = module.net.length, module.net.num_covariates
    first_stamps = [first + pd.Timedelta(days=day) for day in range(min(days, request.num))]
    covariates = {
        start: public_covariates(
            data,
            stamps=pd.date_range(start, periods=length, freq=step),
            num_covariates=num_covariates,
            conditions=conditions,
        )
        for start in first_stamps
    }
    frames = synthesise(
        module,
        starts=[first_stamps[number % len(first_stamps)] for number in range(request.num)],
        length=length,
        step=step,
        covariates=covariates,
        schema=schema,
        generator=generator,
    )
    return ((len(frame) // length, frame) for frame in frames), request.num


def _frequency(data: Any) -> str:
    """Time between steps as the configuration states it; looking it up in the data would read the data."""
    if provides(data, StatesFrequency) and (reading := data.reading) is not None:
        if reading.frequency is None:
            raise ValueError(
                "--frequency is missing, and the run's data doesn't state one: give 30min, for instance."
            )
        return reading.frequency
    return f"{24 * 60 * 60 // data.steps_per_day}s"


def _predictions(
    request: SampleRequest, *, module: Any, data: Any, schema: Any, generator: Any
) -> tuple[Iterator[tuple[int, Any]], int]:
    """Frames of predicted windows with how many each completes, and how many there will be."""
    num_samples = request.options.get("samples", 1)
    if num_samples < 1:
        raise ValueError(f"--samples is {num_samples}; at least 1 draw of each window is needed.")
    if request.num is not None and request.num < 1:
        raise ValueError(f"--num is {request.num}; at least 1 window is predicted.")
    if set(request.options) - {"samples"}:
        raise ValueError(
            "--start, --days, --frequency and --condition are of synthesis; this run predicts test windows."
        )
    data.prepare_data()
    data.setup("predict")
    total = len(data.test_dataset) if request.num is None else min(request.num, len(data.test_dataset))
    frames = predict(
        module,
        batches=data.predict_dataloader(),
        num_windows=total,
        num_samples=num_samples,
        labels=WindowLabels(data),
        schema=schema,
        generator=generator,
    )
    return ((int(frame["sample"].iloc[0] == 1), frame) for frame in frames), total


def claims_of(account: Account, *, reads_rows: bool) -> dict[str, Any]:
    """What may be said of a table: the run's own account, and one sentence for people.

    Args:
        account: of the run.
        reads_rows: whether it was made of rows of somebody's, as predictions are.
    """
    report = account.report
    epsilon = report["epsilon_spent"]  # a checked account has one
    if epsilon == "inf":
        statement = (
            "ε = ∞: the model was trained without privacy, and this file may reveal its training data."
        )
    else:
        statement = (
            f"Post-processing of weights trained with ({float(epsilon):.4g}, {report.get('delta')})-"
            f"differential privacy per {report.get('unit')}: this file costs no further ε, however often it "
            f"is made. {account.sentence}"
        )
    if reads_rows:
        statement += (
            " It also holds predictions from rows that were read as they are: no ε covers those rows. None "
            "of their readings is in it: only what was drawn has a value."
        )
    covered = {} if not reads_rows else {"not_covered": [*(report.get("not_covered") or ()), ROWS_READ]}
    return {
        "statement": statement,
        "epsilon": epsilon,
        **covered,
        "ledger": [report.get("ledger_seq"), report.get("ledger_hash")],
        "read_rows": reads_rows,
        "checks": account.checks,
    }
