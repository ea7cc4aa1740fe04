"""How cells become numbers, time stamps and names; a cell that can't is named by file, line and column."""

from dataclasses import dataclass
from typing import Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lightning_dp.timeseries.data.own_table.files import Rows
from lightning_dp.told import told, told_number, told_place

Duplicates = Literal["error", "first", "mean"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a table is written. Nothing is guessed but the frequency.

    Attributes:
        delimiter: between the columns of a CSV file.
        decimal: the decimal mark of numbers written as text.
        missing_values: texts that mean "nothing was measured", besides an empty cell.
        time_format: of stamps written as text, in strptime's letters, e.g. "%d.%m.%Y %H:%M"; None = ISO 8601.
        time_zone: in which stamps without an offset are written, e.g. "Europe/Berlin"; the calendar features
            are then of local time. None = stamps are taken as they stand, and those with an offset as UTC.
        frequency: of the series, as pandas writes it: "30min", "h", "D", "MS"; a public fact. None = the most
            common distance of neighbouring stamps, which is read from the data and covered by no ε, so that a
            private fit refuses it.
        duplicates: several rows of one customer with the same stamp: refuse them, keep the first one, or
            take the mean of the targets (covariates keep the first).
    """

    delimiter: str = ","
    decimal: str = "."
    missing_values: tuple[str, ...] = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None")
    time_format: str | None = None
    time_zone: str | None = None
    frequency: str | None = None
    duplicates: Duplicates = "error"

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise ValueError(f"reading.delimiter is {self.delimiter!r}; it must be one character.")
        if self.decimal not in (".", ",") or self.decimal == self.delimiter:
            raise ValueError(
                f"reading.decimal is {self.decimal!r}; it must be '.' or ',' and differ from the delimiter."
            )
        if self.duplicates not in get_args(Duplicates):
            raise ValueError(
                f"reading.duplicates is {self.duplicates!r}; it must be one of "
                f"{', '.join(get_args(Duplicates))}."
            )
        if self.time_zone is not None:
            try:
                ZoneInfo(self.time_zone)
            except (ZoneInfoNotFoundError, ValueError):
                raise ValueError(
                    f"reading.time_zone is {self.time_zone!r}, which is no time zone: write it as in "
                    "'Europe/Berlin'."
                ) from None


def read_numbers(rows: Rows, columns: list[str], *, reading: Reading, named: bool = True) -> np.ndarray:
    """(R, len(columns)) float32, NaN where a cell is missing.

    `named` is False where columns are called by their customers, who are not named in messages.

    Raises:
        ValueError: a cell holds neither a number nor a text that means missing.
    """
    arrays = [rows.columns[column] for column in columns]
    if arrays and all(_is_text(array) for array in arrays):
        # At once: per column it would take a moment for each of ten thousand columns.
        numbers = _parse(pa.concat_arrays(arrays), reading=reading)
        values = numbers.to_numpy(zero_copy_only=False).reshape(len(columns), len(rows)).T
    else:
        values = np.stack([_column(rows, column, reading=reading) for column in columns], axis=1)
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    # What Arrow could not parse it leaves as an infinity, which no reading is.
    if np.isinf(small).any():
        row, column = (int(place) for place in np.argwhere(np.isinf(small))[0])
        cell = rows.columns[columns[column]][row].as_py()
        shown = None if named else f"of customer {told_place(column, columns[column])}"
        hint = " or set reading.decimal" if isinstance(cell, str) and "," in cell else ""
        raise ValueError(
            f"{rows.where(row, columns[column], shown=shown)} holds {told_number(cell)}, which is no "
            "finite number: mend it, or "
            f"list it in reading.missing_values if it means that nothing was measured{hint}."
        )
    return small


def read_names(rows: Rows, column: str) -> pa.Array:
    """(R,) text without surrounding blanks; a missing cell is ''."""
    array = rows.columns[column]
    text = array if _is_text(array) else pc.cast(array, pa.string())
    return pc.fill_null(pc.utf8_trim_whitespace(text), "")


def read_stamps(rows: Rows, column: str, *, reading: Reading, wall_clock: bool) -> np.ndarray:
    """(R,) int64 nanoseconds: of UTC, or of what the wall clock shows.

    Args:
        rows: R rows.
        column: of the stamps.
        reading: how they are written.
        wall_clock: steps are days or longer, which the wall clock counts and UTC does not.

    Raises:
        ValueError: a cell is missing or no stamp, or doesn't exist or exists twice in the time zone.
    """
    array = rows.columns[column]
    if pa.types.is_date(array.type):
        stamps = pd.Series(array.cast(pa.timestamp("ns")).to_numpy(zero_copy_only=False))
        aware = np.zeros(len(rows), dtype=bool)
    elif pa.types.is_timestamp(array.type):
        naive = array.cast(pa.timestamp(array.type.unit)).to_numpy(zero_copy_only=False)
        stamps = pd.Series(naive.astype("datetime64[ns]"))
        aware = np.full(len(rows), array.type.tz is not None)
    elif _is_text(array):
        text = pc.fill_null(pc.utf8_trim_whitespace(array), "")
        aware = _has_offset(text, time_format=reading.time_format)
        stamps = pd.to_datetime(
            pd.Series(text.to_pandas()),
            format=reading.time_format or "ISO8601",
            utc=True,
            errors="coerce",
        ).dt.tz_localize(None)
    else:
        raise ValueError(
            f"{rows.file}, column {column!r} holds {array.type}; stamps must be text, dates or timestamps."
        )
    unreadable = stamps.isna().to_numpy()
    if unreadable.any():
        row = int(unreadable.argmax())
        wanted = f"like {reading.time_format!r}" if reading.time_format else "such as 2016-07-01 00:30:00"
        raise ValueError(
            f"{rows.where(row, column)} holds {told(array[row].as_py())}; every row needs a stamp {wanted}: "
            "mend it, or set reading.time_format."
        )
    stamps = stamps.astype("datetime64[ns]")
    if reading.time_zone is None:
        if aware.any() and not aware.all():
            row = int(aware.argmin())
            raise ValueError(
                f"{rows.where(row, column)} holds {told(array[row].as_py())} without an offset from UTC, "
                "which other stamps have: set reading.time_zone to the zone of those that have none."
            )
        return stamps.to_numpy().astype(np.int64)
    zone = reading.time_zone
    if wall_clock:
        local = stamps.dt.tz_localize("UTC").dt.tz_convert(zone).dt.tz_localize(None)
        return np.where(aware, local.to_numpy().astype(np.int64), stamps.to_numpy().astype(np.int64))
    utc = stamps.where(
        aware, stamps.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT").dt.tz_convert(None)
    )
    lost = utc.isna().to_numpy()
    if lost.any():
        row = int(lost.argmax())
        raise ValueError(
            f"{rows.where(row, column)} holds a stamp that {zone} has twice or not at all, "
            "when its clocks are changed: write stamps with their offset, or leave reading.time_zone out."
        )
    return utc.to_numpy().astype("datetime64[ns]").astype(np.int64)


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _has_offset(text: pa.Array, *, time_format: str | None) -> np.ndarray:
    """(R,) bool, True where a stamp says how far it is from UTC."""
    if time_format is not None:
        return np.full(len(text), "%z" in time_format)
    # "2016-07-01" ends like an offset, but an offset follows a time of day.
    return pc.match_substring_regex(text, r":.*(Z|[+-]\d\d(:?\d\d)?)$").to_numpy(zero_copy_only=False)


def _column(rows: Rows, column: str, *, reading: Reading) -> np.ndarray:
    array = rows.columns[column]
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if _is_text(array):
        return _parse(array, reading=reading).to_numpy(zero_copy_only=False)
    try:
        return pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowNotImplementedError:
        raise ValueError(
            f"{rows.file}, column {column!r} holds {array.type}, which are no numbers: choose another column."
        ) from None


def _parse(text: pa.Array, *, reading: Reading) -> pa.Array:
    """fp64: null where missing, ∞ where it is no number."""
    text = pc.utf8_trim_whitespace(text)
    missing = pc.is_in(text, value_set=pa.array(["", *reading.missing_values], type=text.type))
    text = pc.if_else(missing, pa.scalar(None, type=text.type), text)
    if reading.decimal != ".":
        text = pc.replace_substring(text, reading.decimal, ".")
    try:
        return pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        numbers = pd.to_numeric(text.to_pandas(), errors="coerce").astype("float64")
        wrong = numbers.isna().to_numpy() & ~pc.is_null(text).to_numpy(zero_copy_only=False)
        return pa.array(np.where(wrong, np.inf, numbers.to_numpy()), from_pandas=True)
