"""What the columns of a table seem to mean, from a look at its first rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv as pa_csv, parquet as pa_parquet

ROWS = 300_000
"""How many rows are looked at."""

_DELIMITERS = (",", ";", "\t", "|")
_TIME_NAMES = re.compile(
    r"(^|_)(time|timestamp|date|datetime|day|stamp|ds|at|hour|month|zeit|datum)(_|$)", re.I
)
_ID_NAMES = re.compile(
    r"(^|_)(id|ids|uid|uuid|customer|user|meter|household|home|house|name|client|patient|site|station|store|"
    r"sensor|device|series|unit|item|kunde|lclid)(_|$)|id$",
    re.I,
)
_DAY_FIRST = ("%d.%m.%Y", "%d/%m/%Y", "%d-%m-%Y")
_CLOCKS = ("", " %H:%M", " %H:%M:%S")


@dataclass(frozen=True, kw_only=True)
class Look:
    """The first rows of a table.

    Attributes:
        rows: at most `ROWS`, cells of CSV as text.
        complete: whether these are all.
        delimiter: of a CSV; "," else.
        text: whether the files are CSV.
    """

    rows: pd.DataFrame
    complete: bool
    delimiter: str
    text: bool


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What they seem to mean.

    Attributes:
        time: of the stamps.
        time_format: strptime's letters where stamps are not ISO 8601; None where they are.
        ambiguous: two formats by which all stamps can be read, of which the owner has to choose.
        identity: of the customers; None where no column names any.
        numbers: of measurements or numeric covariates.
        others: all others.
        decimal: the decimal mark.
        stamps: (R,) as they are read, NaT throughout where that has to be asked.
    """

    time: str
    time_format: str | None
    ambiguous: tuple[str, str] | None
    identity: str | None
    numbers: list[str]
    others: list[str]
    decimal: str
    stamps: pd.Series


def look(paths: Sequence[Path]) -> Look:
    """Read the first rows.

    Raises:
        ValueError: they can't be read.
    """
    text = paths[0].suffix.lower() == ".csv"
    delimiter = _delimiter(paths[0]) if text else ","
    parts: list[pd.DataFrame] = []
    left = ROWS
    complete = True
    for path in paths:
        if left <= 0:
            complete = False
            break
        try:
            part, whole = _first_rows(path, left, delimiter=delimiter)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} can't be read as {'CSV in UTF-8' if text else 'Parquet'} ({type(error).__name__})."
            ) from None
        parts.append(part)
        left -= len(part)
        complete &= whole
    rows = pd.concat(parts, ignore_index=True)
    if not len(rows):
        raise ValueError(f"{paths[0]} has no rows below its header; there is nothing to look at.")
    return Look(rows=rows, complete=complete, delimiter=delimiter, text=text)


def guess(seen: Look, *, where: Path) -> Columns:
    """What the columns mean.

    Raises:
        ValueError: no column holds stamps, or none holds numbers.
    """
    rows = seen.rows
    times = {name: found for name in rows if (found := _stamps(rows[name])) is not None}
    if not times:
        raise ValueError(
            f"{where} has no column of stamps among its {rows.shape[1]}: a table of series needs one, "
            "written "
            "as 2024-01-31 12:00 or in another way that strptime knows."
        )
    time = max(times, key=lambda name: (bool(_TIME_NAMES.search(str(name))), -list(rows).index(name)))
    stamps, time_format, ambiguous = times[time]
    numbers, decimals = [], []
    rest = [name for name in rows if name != time]
    for name in rest:
        mark = _decimal(rows[name], delimiter=seen.delimiter)
        if mark is not None:
            numbers.append(name)
            decimals.append(mark)
    identity = _identity(rows, time=time, candidates=rest)
    numbers = [name for name in numbers if name != identity]
    if not numbers:
        raise ValueError(
            f"{where} has no column of numbers beside its stamps{' and ids' if identity else ''}: there is "
            "nothing to forecast."
        )
    return Columns(
        time=time,
        time_format=time_format,
        ambiguous=ambiguous,
        identity=identity,
        numbers=numbers,
        others=[name for name in rest if name not in (identity, *numbers)],
        decimal="," if "," in decimals else ".",
        stamps=stamps,
    )


def _first_rows(path: Path, most: int, *, delimiter: str) -> tuple[pd.DataFrame, bool]:
    batches = []
    count = 0
    if path.suffix.lower() == ".parquet":
        with pa_parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=65_536):
                batches.append(batch)
                count += len(batch)
                if count >= most:
                    break
            complete = count >= file.metadata.num_rows
            table = pa.Table.from_batches(batches, schema=file.schema_arrow)
        return table.slice(0, most).to_pandas(), complete and count <= most
    with path.open("rb") as raw:
        names = raw.readline().decode().strip("\ufeff\r\n").split(delimiter)
    types = {name.strip('"'): pa.string() for name in names}
    complete = True
    with pa_csv.open_csv(
        path,
        parse_options=pa_csv.ParseOptions(delimiter=delimiter),
        convert_options=pa_csv.ConvertOptions(column_types=types, strings_can_be_null=False),
    ) as reader:
        schema = reader.schema
        for batch in reader:
            batches.append(batch)
            count += len(batch)
            if count >= most:
                complete = False
                break
    return pa.Table.from_batches(batches, schema=schema).slice(0, most).to_pandas(), complete


def _delimiter(path: Path) -> str:
    with path.open("rb") as file:
        header = file.readline()
        second = file.readline()
    counts = {mark: header.count(mark.encode()) for mark in _DELIMITERS}
    alike = [mark for mark in _DELIMITERS if counts[mark] and second.count(mark.encode()) >= counts[mark]]
    return max(alike or _DELIMITERS, key=lambda mark: counts[mark])


def _stamps(
    cells: pd.Series,
) -> tuple[pd.Series, str | None, tuple[str, str] | None] | None:
    """Stamps of a column, how they are written, and what has to be asked; None where it holds none."""
    if pd.api.types.is_datetime64_any_dtype(cells):
        return cells, None, None
    if pd.api.types.is_object_dtype(cells) and len(cells) and hasattr(cells.iloc[0], "isoformat"):
        return pd.to_datetime(cells), None, None
    if not (pd.api.types.is_string_dtype(cells) or pd.api.types.is_object_dtype(cells)):
        return None
    text = cells.astype(str).str.strip()
    if not text.str.contains(r"\d[-/.:T]\d", regex=True).mean() > 0.99:
        return None
    iso = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    if text.str.match(r"\d{4}").all() and iso.notna().all():
        offsets = text.str.contains(r":.*(?:Z|[+-]\d\d:?\d\d)$", regex=True)
        return (iso if offsets.any() else iso.dt.tz_localize(None)), None, None
    found = {}
    for date in _DAY_FIRST:
        for order in (date, date.replace("%d", "#").replace("%m", "%d").replace("#", "%m")):
            for clock in _CLOCKS:
                read = pd.to_datetime(text, format=order + clock, errors="coerce")
                if read.notna().all():
                    found[order + clock] = read
    if not found:
        return None
    written = list(found)
    dotted = [one for one in written if one.startswith("%d.")]  # nobody puts months first between points
    if dotted:
        return found[dotted[0]], dotted[0], None
    if len(written) > 1:
        return pd.Series(pd.NaT, index=cells.index), None, (written[0], written[1])
    return found[written[0]], written[0], None


def _decimal(cells: pd.Series, *, delimiter: str) -> str | None:
    """The decimal mark of a column of numbers; None where it holds something else."""
    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        return "."
    if not (pd.api.types.is_string_dtype(cells) or pd.api.types.is_object_dtype(cells)):
        return None
    text = cells.dropna().astype(str).str.strip()
    text = text[~text.isin(["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"])]
    if not len(text):
        return None
    if pd.to_numeric(text, errors="coerce").notna().all():
        return "."
    if delimiter != "," and text.str.fullmatch(r"[+-]?\d+(,\d+)?").all():
        return ","
    return None


def _identity(rows: pd.DataFrame, *, time: str, candidates: list[str]) -> str | None:
    """The column by which, with the stamp, rows are told apart; None where stamps alone do."""
    if not rows[time].duplicated().any():
        return None
    fitting = []
    for name in candidates:
        column = rows[name]
        if pd.api.types.is_float_dtype(column):
            continue
        known = column.nunique(dropna=False)
        named = bool(_ID_NAMES.search(str(name)))
        if known < 2 or (known > len(rows) // 2 and not named):
            continue
        repeated = rows.duplicated([name, time]).mean()
        if repeated < 0.01 or (named and repeated < 0.2):
            fitting.append((not named, repeated, known, name))
    return min(fitting)[3] if fitting else None


def distances(columns: Columns, rows: pd.DataFrame) -> tuple[int | None, float]:
    """Nanoseconds between neighbouring stamps of a series, the most common, and which share has it."""
    stamps = columns.stamps
    if stamps.isna().any():
        return None, 0.0
    if getattr(stamps.dt, "tz", None) is not None:
        stamps = stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    times = stamps.astype("datetime64[ns]").astype("int64").to_numpy()
    names = columns.identity
    codes = np.zeros(len(rows), int) if names is None else rows[names].astype("category").cat.codes.to_numpy()
    order = np.lexsort((times, codes))
    steps = np.diff(times[order])[np.diff(codes[order]) == 0]
    steps = steps[steps > 0]
    if not len(steps):
        return None, 0.0
    values, counts = np.unique(steps, return_counts=True)
    days = values[counts.argmax()] / 86_400e9
    if 28 <= days <= 31 and len(values) > 1 and (values / 86_400e9 >= 28).all():
        return -1, float(((steps / 86_400e9 >= 28) & (steps / 86_400e9 <= 31)).mean())  # months
    return int(values[counts.argmax()]), float(counts.max() / len(steps))
