"""How a table writes its ids and its stamps, learnt from its cells, so that predictions can be joined to it.

Nothing here decides what a cell means: `reading` does. Cells are put beside what was read of them, and the
way of writing that gives most of them back, letter by letter, is kept.

Shapes: M cells, S steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lightning_dp.timeseries.data.own_table.files import CSVFile, Rows, TableFile
from lightning_dp.timeseries.data.own_table.frequency import Frequency
from lightning_dp.timeseries.data.own_table.ids import canonical
from lightning_dp.timeseries.data.own_table.layout import Layout
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.since import Since
from lightning_dp.timeseries.data.own_table.stamp_text import DateTimeText, text_candidates
from lightning_dp.timeseries.data.own_table.stamps import read_stamps

_MOST_CELLS = 200_000  # different stamps that are looked at
_TRIED = 1_000  # of them, those on which ways of writing are compared


@dataclass(frozen=True, kw_only=True)
class TableSpelling:
    """Ids and stamps as the input has them.

    Attributes:
        ids: the reader's name of a customer → the input's own id.
        id_type: Arrow's type of the ids.
        stamps: writes stamps.
        csv_ids, csv_stamps: whether these are cells of CSV files, in which numbers are text too.
    """

    ids: dict[str, Any]
    id_type: pa.DataType
    stamps: "StampSpelling"
    csv_ids: bool = False
    csv_stamps: bool = False

    def id_of(self, name: str) -> Any:
        """The input's own id, of its own type."""
        own = self.ids[name] if self.ids else name  # a single series has one that no cell holds
        return pa.array([own], type=self.id_type).to_pandas().iloc[0]

    @classmethod
    def learn(
        cls, files: Sequence[TableFile], *, layout: Layout, reading: Reading, frequency: Frequency
    ) -> "TableSpelling":
        """Read the columns that say who and when, and nothing else.

        Args:
            files: of the table, which has been converted: its cells are known to be right.
            layout: what its columns mean.
            reading: how its cells are written.
            frequency: of its steps, with its phase.
        """
        ids: dict[str, Any] = {}
        types: list[pa.DataType] = []
        cells: list[pa.Array] = []
        stamps: list[np.ndarray] = []
        for file in files:
            columns = layout.customers(file)
            if columns is not None:
                ids.update({canonical(name, reading=reading): name for name in columns})
                types.append(pa.string())
            for who, when in _distinct(file, layout=layout, reading=reading):
                if who is not None:
                    owned, names = layout.owned(who, reading=reading)
                    raw = owned.columns[layout.id_column]
                    assert names is not None
                    types.append(raw.type)
                    for name, own in zip(names.to_pylist(), raw.to_pylist(), strict=True):
                        ids.setdefault(canonical(name, reading=reading), own)
                if sum(map(len, cells)) < _MOST_CELLS:
                    cells.append(when.columns[layout.time_column])
                    read = read_stamps(
                        when, layout.time_column, reading=reading, wall_clock=frequency.is_days
                    )
                    stamps.append(read)
        kinds = set(types)
        id_type = types[0] if len(kinds) == 1 else pa.int64() if kinds and _all_whole(kinds) else pa.string()
        if id_type == pa.string() and len(kinds) > 1:
            ids = {name: str(own) for name, own in ids.items()}
        from_csv = all(isinstance(file, CSVFile) for file in files)
        return cls(
            ids=ids,
            id_type=id_type,
            csv_ids=from_csv and layout.names_in_rows,
            csv_stamps=from_csv,
            stamps=StampSpelling.learn(
                _joined(cells), np.concatenate(stamps), reading=reading, frequency=frequency
            ),
        )


class StampSpelling:
    """Writes the stamps of a table's steps in the way of its own cells.

    Attributes:
        note: a sentence where cells of the table are written in several ways, so that some stamps can't be
            told letter by letter; else "".
    """

    def __init__(
        self,
        *,
        frequency: Frequency,
        zone: str | None,
        place_in_month: tuple[bool, int],
        cell_type: pa.DataType,
        since: Since | None = None,
        digits: int | None = None,
        text: DateTimeText | None = None,
        offsets: tuple[np.ndarray, np.ndarray] | None = None,
        note: str = "",
    ) -> None:
        self._frequency = frequency
        self._zone = zone
        self._place_in_month = place_in_month
        self._type = cell_type
        self._since = since
        self._digits = digits
        self._text = text
        self._offsets = offsets
        self.note = note

    @classmethod
    def learn(
        cls, cells: pa.Array, stamps: np.ndarray, *, reading: Reading, frequency: Frequency
    ) -> "StampSpelling":
        """From M cells and what was read of them.

        Args:
            cells: (M,) as the files have them.
            stamps: (M,) int64 nanoseconds, as of `read_stamps`.
            reading: how cells are written.
            frequency: of the table's steps, with its phase.
        """
        steps = frequency.numbers(stamps)  # (M,)
        common: dict[str, Any] = {
            "frequency": frequency,
            "zone": reading.time_zone,
            "place_in_month": _place_in_month(stamps, frequency),
            "cell_type": cells.type,
        }
        if pa.types.is_date(cells.type) or pa.types.is_timestamp(cells.type):
            return cls(**common)
        chosen = np.unique(np.linspace(0, len(cells) - 1, min(_TRIED, len(cells))).astype(int))
        tried, wanted = steps[chosen], cells.take(pa.array(chosen))
        ways: list[StampSpelling] = []
        if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
            texts = pc.utf8_trim_whitespace(cells).to_pylist()
            wanted = pc.utf8_trim_whitespace(wanted)
            offsets = _offsets(texts, stamps)
            ways += [
                cls(**common, text=text, offsets=offsets)
                for text in text_candidates(wanted.to_pylist(), time_format=reading.time_format)
            ]
        if " since " in (reading.time_format or ""):
            since = Since.parse(reading.time_format or "")
            most = max(len(str(cell).partition(".")[2]) for cell in wanted.to_pylist())
            ways += [cls(**common, since=since, digits=digits) for digits in (None, most)]
        ways.append(cls(**{**common, "cell_type": pa.string()}, text=DateTimeText.iso(), offsets=None))
        own = wanted.to_pylist()
        right = [_same(way.write(tried).to_pylist(), own) for way in ways]
        best = int(np.argmax(right))
        ways[best].note = (
            ""
            if right[best] == len(own)
            else (
                f"the stamps of the input are written in several ways, of which {right[best]} of the "
                f"{len(own)} looked at are as those written here: write the others alike to join by them."
            )
        )
        return ways[best]

    def write(self, steps: np.ndarray) -> pa.Array:
        """(S,) cells of the table's own type.

        Args:
            steps: (S,) int64 numbers of steps on the clock.
        """
        clock = self._frequency.stamps(np.asarray(steps))
        if self._frequency.months:
            at_end, past = self._place_in_month
            clock = (clock + pd.offsets.MonthEnd(0) if at_end else clock) + pd.Timedelta(past, unit="ns")
        instants, wall = self._both(pd.DatetimeIndex(clock))
        if self._since is not None:
            return self._counted(wall.as_unit("ns").asi8 - self._since.start)
        if self._text is not None:
            if not self._text.tells_offset:
                return pa.array(self._text.write(wall, None), type=self._type)
            minutes = self._minutes(instants, wall)
            local = instants + pd.to_timedelta(minutes, unit="min")
            return pa.array(self._text.write(local, minutes), type=self._type)
        if pa.types.is_timestamp(self._type) and self._type.tz is not None:
            return _nanoseconds(instants).cast(self._type, safe=False)
        return _nanoseconds(wall).cast(self._type, safe=False)

    def _counted(self, nanoseconds: np.ndarray) -> pa.Array:
        """(S,) cells of numbers that count from a stamp."""
        assert self._since is not None
        counts = nanoseconds // self._since.unit
        if (counts * self._since.unit == nanoseconds).all():
            numbers = pa.array(counts)
        else:
            numbers = pa.array(nanoseconds / self._since.unit)
        if not (pa.types.is_string(self._type) or pa.types.is_large_string(self._type)):
            return numbers.cast(self._type, safe=False)
        if self._digits:
            return pa.array([f"{one:.{self._digits}f}" for one in numbers.to_pylist()], type=self._type)
        return pa.array([str(one) for one in numbers.to_pylist()], type=self._type)

    def _both(self, clock: pd.DatetimeIndex) -> tuple[pd.DatetimeIndex, pd.DatetimeIndex]:
        """(S,) instants in UTC and (S,) what the wall clock shows, of what the table's clock shows."""
        zone = self._zone
        if zone is None:
            return clock, clock
        if self._frequency.is_days:
            # The first of two, or the moment after a gap: a day of the calendar has one stamp.
            local = clock.tz_localize(zone, ambiguous=np.ones(len(clock), bool), nonexistent="shift_forward")
            return local.tz_convert("UTC").tz_localize(None), clock
        return clock, clock.tz_localize("UTC").tz_convert(zone).tz_localize(None)

    def _minutes(self, instants: pd.DatetimeIndex, wall: pd.DatetimeIndex) -> np.ndarray:
        """(S,) offsets from UTC: of the zone that is stated, else of the nearest stamp not after each."""
        if self._zone is not None:
            return ((wall - instants) // pd.Timedelta(minutes=1)).to_numpy()
        if self._offsets is None:
            return np.zeros(len(instants), dtype=np.int64)
        since, minutes = self._offsets
        place = np.searchsorted(since, instants.as_unit("ns").asi8, side="right") - 1
        return minutes[np.maximum(place, 0)]


def _distinct(file: TableFile, *, layout: Layout, reading: Reading) -> Iterator[tuple[Rows | None, Rows]]:
    """Ids and stamps of a file that no batch before had, some at a time."""
    named = layout.names_in_rows
    columns = [*([layout.id_column] if named else []), layout.time_column]
    known: dict[str, pa.Array] = {}

    def fresh(rows: Rows, column: str) -> Rows:
        values = rows.columns[column].unique()
        before = known.get(column)
        if before is not None:
            values = values.filter(pc.invert(pc.is_in(values, value_set=before)))
        known[column] = values if before is None else pa.concat_arrays([before, values])
        numbers = np.arange(1, len(values) + 1)
        return Rows(file=rows.file, columns={column: values}, numbers=numbers, counted=rows.counted)

    for every in file.read(columns):
        rows, _ = layout.owned(every, reading=reading)  # cells of nobody's rows may hold anything
        yield (
            fresh(rows, layout.id_column) if named else None,
            fresh(rows, layout.time_column),
        )


def _joined(cells: list[pa.Array]) -> pa.Array:
    """One array; of text where files differ in their types."""
    if len({one.type for one in cells}) > 1:
        cells = [one if pa.types.is_string(one.type) else one.cast(pa.string()) for one in cells]
    return pa.concat_arrays(cells)


def _all_whole(kinds: set[pa.DataType]) -> bool:
    return all(pa.types.is_integer(kind) for kind in kinds)


def _nanoseconds(stamps: pd.DatetimeIndex) -> pa.Array:
    return pa.array(stamps.as_unit("ns").asi8).cast(pa.timestamp("ns"))


def _place_in_month(stamps: np.ndarray, frequency: Frequency) -> tuple[bool, int]:
    """Where in its month a stamp lies: whether counted from the last day, and nanoseconds from there."""
    if not frequency.months:
        return False, 0
    begins = stamps.astype("datetime64[ns]").astype("datetime64[M]")
    past = stamps - begins.astype("datetime64[ns]").astype(np.int64)
    if (past == past[0]).all():
        return False, int(past[0])
    ends = (begins + 1).astype("datetime64[D]") - np.timedelta64(1, "D")
    past_last_day = stamps - ends.astype("datetime64[ns]").astype(np.int64)
    if (past_last_day == past_last_day[0]).all():
        return True, int(past_last_day[0])
    return False, int(np.bincount(past // 86_400_000_000_000).argmax()) * 86_400_000_000_000


def _offsets(texts: list[str], stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Stamps from which an offset holds, and the offsets in minutes; None where no cell has one."""
    minutes = [DateTimeText.offset_of(text) for text in texts]
    known = np.array([one is not None for one in minutes])
    if not known.any():
        return None
    since = stamps[known]
    own = np.array([one for one in minutes if one is not None])
    order = np.argsort(since, kind="stable")
    since, own = since[order], own[order]
    changes = np.concatenate([[True], np.diff(own) != 0])
    return since[changes], own[changes]


def _same(written: list[Any], own: list[Any]) -> int:
    return sum(one == other for one, other in zip(written, own, strict=True))
