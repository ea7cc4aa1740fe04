"""Cells as time stamps; one that is none is named by file, line and column, with a format that reads it."""

from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lightning_dp.timeseries.data.own_table.files import Rows
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.since import Since, suggestions
from lightning_dp.told import told

_ISO = (
    r"^(\d{4}[-/]\d{1,2}([-/]\d{1,2}"
    r"([T ]\d{1,2}(:\d{2}(:\d{2}([.,]\d{1,9})?)?)?\s?(Z|[+-]\d{2}(:?\d{2})?)?)?)?"
    r"|\d{8}(T\d{4}(\d{2})?(Z|[+-]\d{2}(:?\d{2})?)?)?)$"
)
_OFFSET = r"[T ]\d.*(Z|[+-]\d\d(:?\d\d)?)$"
_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_NAT = np.iinfo(np.int64).min
_DAY_NS = 86_400 * 10**9
_TRIED = 500  # cells that a suggested format has to read
_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d", "%d.%m.%y", "%d/%m/%y")
_NAMED_DAYS = ("%m/%d/%y", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%Y-%m-%d", "%Y%m%d")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", ":%H:%M:%S", " %H.%M", " %H%M")
_OTHERS = ("%Y", "%Y%m", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y-%m-%d-%H.%M.%S", "%m/%Y", "%Y/%m")
_FORMATS = [*(f"{day}{time}" for day in (*_DAYS, *_NAMED_DAYS) for time in _TIMES), *_OTHERS]


@dataclass(kw_only=True)
class Offsets:
    """Whether the stamps of a table say how far they are from UTC: all of them, or none.

    Attributes:
        places: of the first stamp with an offset (True) and the first without one (False).
    """

    places: dict[bool, str] = field(default_factory=dict)

    @property
    def aware(self) -> bool:
        """Whether stamps have one."""
        return True in self.places

    def note(self, aware: np.ndarray, *, rows: Rows, column: str, reading: Reading) -> None:
        """Refuse both together where nothing says in which zone the stamps without an offset are."""
        for kind in (True, False):
            if kind not in self.places and (aware == kind).any():
                self.places[kind] = rows.where(int((aware == kind).argmax()), column)
        if len(self.places) == 2 and reading.time_zone is None:
            raise ValueError(
                f"{self.places[False]} holds a stamp without an offset from UTC, where {self.places[True]} "
                "has one: set reading.time_zone to the zone of those that have none."
            )


def read_stamps(
    rows: Rows, column: str, *, reading: Reading, wall_clock: bool, offsets: Offsets | None = None
) -> np.ndarray:
    """(R,) int64 nanoseconds: of UTC, or of what the wall clock shows.

    Args:
        rows: R rows.
        column: of the stamps.
        reading: how they are written.
        wall_clock: steps are days or longer, which the wall clock counts and UTC does not.
        offsets: what other rows of the table have; updated.

    Raises:
        ValueError: a cell is missing or no stamp, or lies outside of 1678 to 2261, or doesn't exist or exists
            twice in the time zone.
    """
    array = rows.columns[column]
    stamps, aware = _stamps(rows, column, array, reading=reading)
    (offsets or Offsets()).note(aware, rows=rows, column=column, reading=reading)
    if reading.time_zone is None or not len(stamps):
        return stamps
    zone = reading.time_zone
    series = pd.Series(stamps.view("datetime64[ns]"))
    if wall_clock:
        local = series.dt.tz_localize("UTC").dt.tz_convert(zone).dt.tz_localize(None)
        return np.where(aware, local.to_numpy().astype("datetime64[ns]").astype(np.int64), stamps)
    utc = series.where(
        aware, series.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT").dt.tz_convert(None)
    )
    lost = utc.isna().to_numpy()
    if lost.any():
        row = int(lost.argmax())
        raise ValueError(
            f"{rows.where(row, column)} holds a stamp that {ZoneInfo(zone).key} has twice or not at all, "
            "when its clocks are changed: write stamps with their offset, or leave reading.time_zone out."
        )
    return utc.to_numpy().astype("datetime64[ns]").astype(np.int64)


def _stamps(rows: Rows, column: str, array: pa.Array, *, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int64 nanoseconds as they stand, in UTC where they have an offset; and (R,) bool, whether so."""
    kind = array.type
    aware = np.zeros(len(array), dtype=bool)
    written = reading.time_format or ""
    since = Since.parse(written) if " since " in written else None
    if pa.types.is_null(kind):
        array = pa.nulls(len(array), pa.string())
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        if pa.types.is_timestamp(kind):
            aware[:] = kind.tz is not None
            unit = kind.unit
        else:
            unit = "ms" if pa.types.is_date64(kind) else "s"
            array = array.cast(pa.timestamp(unit))
        integers = pc.fill_null(array.cast(pa.int64()), _NAT).to_numpy(zero_copy_only=False)
        return _in_nanoseconds(rows, column, integers, factor=_NS[unit], reading=reading), aware
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if since is None:
            if len(array) and (reading.time_format is None or not pa.types.is_integer(kind)):
                raise _unreadable(rows, column, 0, reading=reading)
            array = array.cast(pa.string())
        else:
            return _counted(rows, column, array, since=since, reading=reading), aware
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise ValueError(
            f"{rows.file}, column {column!r} holds {kind}; stamps must be text, dates, timestamps or numbers."
        )
    # Customers share most stamps, so that each is read once.
    encoded = pc.fill_null(pc.utf8_trim_whitespace(array), "").dictionary_encode()
    text, indices = encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)
    if since is not None:
        return _counted(rows, column, text, since=since, reading=reading, indices=indices), aware
    integers, factor = _parsed(text, time_format=reading.time_format)
    stamps = _in_nanoseconds(rows, column, integers[indices], factor=factor, reading=reading)
    return stamps, _has_offset(text, time_format=reading.time_format)[indices]


def _in_nanoseconds(
    rows: Rows, column: str, integers: np.ndarray, *, factor: int, reading: Reading
) -> np.ndarray:
    """(R,) int64 of another unit as nanoseconds."""
    missing = integers == _NAT
    if missing.any():
        raise _unreadable(rows, column, int(missing.argmax()), reading=reading)
    limit = np.iinfo(np.int64).max // factor
    outside = (integers > limit) | (integers < -limit)
    if outside.any():
        raise _outside(rows, column, int(outside.argmax()), seconds=integers * (factor / 10**9))
    return integers * factor


def _outside(rows: Rows, column: str, row: int, *, seconds: np.ndarray | None = None) -> ValueError:
    year = ""
    if seconds is not None and abs(seconds[row]) < 1e15:
        year = f" of the year {np.datetime64(int(seconds[row]), 's').astype('datetime64[Y]')}"
    return ValueError(
        f"{rows.where(row, column)} holds a stamp{year}, outside of 1678 to 2261, in which stamps are kept: "
        "remove the row if the stamp means that there is none, else mend it."
    )


def _counted(
    rows: Rows,
    column: str,
    array: pa.Array,
    *,
    since: Since,
    reading: Reading,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """Stamps of numbers; whole ones exactly."""
    lost = pc.is_null(array).to_numpy(zero_copy_only=False)
    numbers: np.ndarray
    try:
        numbers = pc.fill_null(pc.cast(array, pa.int64()), 0).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            parsed = pd.to_numeric(array.to_pandas(), errors="coerce").to_numpy(dtype=np.float64)
        else:
            parsed = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        lost = lost | ~np.isfinite(parsed)
        numbers = np.where(lost, 0.0, parsed)
    stamps, outside = since.nanoseconds(numbers)
    if indices is not None:
        lost, outside, stamps = lost[indices], outside[indices], stamps[indices]
    if lost.any():
        raise _unreadable(rows, column, int(lost.argmax()), reading=reading)
    if outside.any():
        raise _outside(rows, column, int(outside.argmax()))
    return stamps


def _parsed(text: pa.Array, *, time_format: str | None) -> tuple[np.ndarray, int]:
    """(U,) int64 of a unit, `_NAT` where a text is no stamp; and nanoseconds of the unit."""
    if time_format is None:
        try:  # much faster, and as strict
            read = pc.cast(text, pa.timestamp("us")).cast(pa.int64())
            return read.to_numpy(zero_copy_only=False), _NS["us"]
        except pa.ArrowInvalid:
            pass
    integers, factor = _by_pandas(text, time_format=time_format)
    late = _end_of_day(text, integers, time_format=time_format)
    if late is not None:
        rows, replaced = late
        again, its = _by_pandas(replaced, time_format=time_format)
        common = min(factor, its)
        known = integers != _NAT
        integers = np.where(known, integers * (factor // common), _NAT)
        moved = np.where(again == _NAT, _NAT, again * (its // common) + _DAY_NS // common)
        integers[rows] = moved
        factor = common
    return integers, factor


def _by_pandas(text: pa.Array, *, time_format: str | None) -> tuple[np.ndarray, int]:
    strings = text.to_pandas()
    if time_format is None:
        # pandas also reads "now", and a bare year, which may be a number of something else.
        strict = pc.match_substring_regex(text, _ISO).to_numpy(zero_copy_only=False)
        strings = strings.where(strict)
    stamps = pd.to_datetime(strings, format=time_format or "ISO8601", utc=True, errors="coerce")
    values = pd.Series(stamps).dt.tz_localize(None).to_numpy()
    return values.astype(np.int64), _NS[np.datetime_data(values.dtype)[0]]


def _end_of_day(
    text: pa.Array, integers: np.ndarray, *, time_format: str | None
) -> tuple[np.ndarray, pa.Array] | None:
    """Unread texts whose time of day is 24:00, and what they are at 00:00 of the same day."""
    for mark in (":", ".", "h", " ", ""):
        if (":" if time_format is None else f"%H{mark}%M") not in (time_format or mark):
            continue
        plain = "[.]" if mark == "." else mark
        midnight = rf"24{plain}00"
        # No digits before but a date's, and nothing after but a midnight's own zeros.
        whole = rf"(^|\D|\d{{8}}){midnight}({plain}00([.,]0+)?)?([^\d:.,]|$)"
        found = pc.match_substring_regex(text, whole).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(found & (integers == _NAT))
        if len(rows):
            chosen = text.take(pa.array(rows))
            return rows, pc.replace_substring_regex(chosen, midnight, f"00{mark}00", max_replacements=1)
    return None


def _has_offset(text: pa.Array, *, time_format: str | None) -> np.ndarray:
    """(U,) bool, True where a stamp says how far it is from UTC."""
    if time_format is not None:
        return np.full(len(text), "%z" in time_format or "%Z" in time_format)
    return pc.match_substring_regex(text, _OFFSET).to_numpy(zero_copy_only=False)


def _unreadable(rows: Rows, column: str, row: int, *, reading: Reading) -> ValueError:
    cell = rows.columns[column][row].as_py()
    wanted = f"like {reading.time_format!r}" if reading.time_format else "such as 2016-07-01 00:30:00"
    return ValueError(
        f"{rows.where(row, column)} holds {told(cell)}; every row needs a stamp {wanted}: "
        f"{_advice(rows.columns[column], cell, reading=reading)}."
    )


def _advice(array: pa.Array, cell: object, *, reading: Reading) -> str:
    """What to do about a column with this cell; a format that is named reads it."""
    nothing = "mend it or remove the row"
    if cell is None or not str(cell).strip():
        return nothing
    column = [str(one).strip() for one in pc.unique(array).slice(0, _TRIED).to_pylist() if one is not None]
    column = [one for one in column if one] or [str(cell)]
    fitting = [one for one in _FORMATS if _fits(one, column)]
    try:
        numbers = np.array([float(one) for one in column])
    except ValueError:
        numbers = None
    if numbers is not None and np.isfinite(numbers).all():
        fitting += suggestions(numbers)
        if not fitting and (numbers == np.rint(numbers)).all():
            return (
                "if it is a number of a step, set reading.time_format to what 0 and 1 stand for, as in "
                "'hours since 2024-01-01'"
            )
    fitting = [one for one in fitting if one != reading.time_format]
    if fitting:
        formats = " or ".join(map(repr, fitting[:3]))
        return f"set reading.time_format to {formats}, by which all can be read"
    if any(_fits(one, [str(cell).strip()]) for one in _FORMATS):
        return f"{nothing}, as no reading.time_format that is tried here reads all of its column"
    return nothing


def _fits(time_format: str | None, column: list[str]) -> bool:
    integers, _ = _parsed(pa.array(column), time_format=time_format)
    return bool((integers != _NAT).all())
