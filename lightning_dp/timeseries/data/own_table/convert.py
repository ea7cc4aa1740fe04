"""From files to one array on disk: every customer's series on a clock of equal steps, end to end.

Two passes over the files with a bounded number of cells in memory: the first finds who there is and from
when to when, the second puts each cell in its place. Steps without a row become NaN.

Shapes: R rows of a batch, N customers, C channels, K = C + covariate columns, T_i steps of customer i.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lightning_dp.timeseries.data.own_table.files import Rows, TableFile
from lightning_dp.timeseries.data.own_table.frequency import Frequency
from lightning_dp.timeseries.data.own_table.ids import Directory, Where, canonical
from lightning_dp.timeseries.data.own_table.layout import Layout
from lightning_dp.timeseries.data.own_table.numbers import Marks
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.report import TableReport
from lightning_dp.timeseries.data.own_table.stamps import Offsets, read_stamps
from lightning_dp.told import debugging, told_place

CELLS, INDEX = "cells.npy", "index.npz"
# A wrong year would otherwise ask for a disk full of gaps.
_MOST_STEPS_PER_READING, _SPARE_STEPS = 50, 10_000
_ROWS_TO_INFER = 500_000
_NAMES = 3


def convert(files: list[TableFile], *, layout: Layout, reading: Reading, folder: Path) -> TableReport:
    """Write `CELLS` and `INDEX` into an existing folder.

    Raises:
        ValueError: the table can't be right; the file, line, column and value are named.
    """
    report = TableReport(files=len(files), frequency_inferred=reading.frequency is None)
    clock = _Clock(files, layout=layout, reading=reading)
    report.frequency_share = clock.share
    extents = _scan(files, layout=layout, clock=clock, reading=reading, report=report)
    cells = _Cells(
        folder,
        extents=extents,
        num_channels=len(layout.channel_names),
        num_covariates=len(layout.covariates.columns),
        reading=reading,
        months=clock.frequency.months > 0,
    )
    marks = Marks()
    for file in files:
        checks = layout.column_checks(file)
        for batch in layout.read(file, reading=reading, marks=marks):
            report.clipped_covariates += batch.clipped
            numbers = clock.numbers(batch.rows)
            if checks is not None:
                checks.note(batch.targets)
            if batch.customers is not None:
                codes = extents.codes(batch.customers)
                positions = extents.positions(codes, numbers)  # (R,)
                cells.put(
                    positions,
                    batch.targets,
                    batch.covariates,
                    repeated=_repeated(positions),
                    rows=batch.rows,
                )
            else:
                customers = extents.codes(pa.array(layout.customers(file)))  # (N,)
                positions = extents.positions(customers[None, :], numbers[:, None]).ravel()  # (R·N,)
                several = len(np.unique(customers)) < len(customers)
                cells.put(
                    positions,
                    batch.targets.reshape(-1, 1),
                    np.repeat(batch.covariates, len(customers), axis=0),
                    repeated=_repeated(positions)
                    if several
                    else np.repeat(_repeated(numbers), len(customers)),
                    rows=batch.rows,
                )
        if checks is not None:
            checks.check(file=file.path)
    marks.check(reading=reading)
    _finish(cells, extents=extents, layout=layout, clock=clock, report=report)
    return report


class _Clock:
    """Stamps of batches as step numbers; refuses stamps between steps."""

    def __init__(self, files: list[TableFile], *, layout: Layout, reading: Reading) -> None:
        self._column = layout.time_column
        self._reading = reading
        self.offsets = Offsets()
        self.share = 1.0
        if reading.frequency is not None:
            frequency = Frequency.parse(reading.frequency)
        else:
            frequency, self.share = self._infer(files, layout=layout)
        self.frequency = frequency
        self._phase_known = False

    def numbers(self, rows: Rows) -> np.ndarray:
        """(R,) int64."""
        stamps = read_stamps(
            rows,
            self._column,
            reading=self._reading,
            wall_clock=self.frequency.is_days,
            offsets=self.offsets,
        )  # (R,)
        if not len(stamps):
            return stamps
        phases = self.frequency.phases(stamps)
        if not self._phase_known:
            self._phase_known = True
            self.frequency = Frequency(
                nanoseconds=self.frequency.nanoseconds, months=self.frequency.months, phase=int(phases[0])
            )
        between = phases != self.frequency.phase
        if between.any():
            row = int(between.argmax())
            raise ValueError(
                f"{rows.where(row, self._column)} holds a stamp that lies between the steps of "
                f"{self.frequency} that the first stamp begins: round the stamps, or set reading.frequency "
                "to a step that all of them share."
            )
        return self.frequency.numbers(stamps)

    def _infer(self, files: list[TableFile], *, layout: Layout) -> tuple[Frequency, float]:
        stamps: list[np.ndarray] = []
        codes: list[np.ndarray] = []
        known: dict[str, int] = {}
        for rows, names in _keys(files, layout=layout, reading=self._reading):
            stamps.append(read_stamps(rows, self._column, reading=self._reading, wall_clock=False))
            codes.append(np.zeros(len(rows), dtype=np.int64) if names is None else _codes(names, known))
            if sum(map(len, stamps)) >= _ROWS_TO_INFER:
                break
        found = Frequency.infer(np.concatenate(stamps), np.concatenate(codes)) if stamps else None
        if found is None:
            raise ValueError(
                "reading.frequency can't be read from the data, in which no customer has two stamps: check "
                "the columns of the layout, or set reading.frequency."
            )
        return found


@dataclass(kw_only=True)
class _Extents:
    """Who there is and from when to when.

    Attributes:
        ids: N names, sorted.
        spelled: (N,) as each is written where they first appear.
        reading: how ids are written.
        first: (N,) number of the first step.
        lengths: (N,) steps.
    """

    ids: list[str]
    spelled: list[str]
    reading: Reading
    first: np.ndarray
    lengths: np.ndarray

    def __post_init__(self) -> None:
        self._known = {name: code for code, name in enumerate(self.ids)}
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    def codes(self, names: pa.Array) -> np.ndarray:
        """(R,) numbers of customers."""
        encoded = names.dictionary_encode()
        codes = [
            self._known[canonical(name, reading=self.reading)] for name in encoded.dictionary.to_pylist()
        ]
        return np.array(codes, dtype=np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]

    def positions(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Rows of the array for customers and steps."""
        return (self.offsets - self.first)[codes] + numbers


def _scan(
    files: list[TableFile], *, layout: Layout, clock: _Clock, reading: Reading, report: TableReport
) -> _Extents:
    known = Directory(reading=reading)
    first, last, count = (np.empty(0, dtype=np.int64) for _ in range(3))
    for file in files:
        columns = layout.customers(file)
        for rows, owners in _keys([file], layout=layout, reading=reading, report=report):
            numbers = clock.numbers(rows)
            report.rows += len(numbers)
            if not len(numbers):
                continue
            if columns is not None:
                codes = known.look_up(pa.array(columns), where=Where(None, "", file=str(file.path)))
            else:
                assert owners is not None
                codes = known.look_up(owners, where=Where(rows, layout.needed_columns(file)[0]))
                kind = rows.columns[layout.needed_columns(file)[0]].type
                if rows.counted == "row" and not pa.types.is_null(kind):  # a CSV file has no types
                    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
                    known.note_kind("text" if is_text else "numbers", place=str(file.path))
                    report.id_type = str(kind)
            grown = len(known.codes) - len(first)
            first = np.concatenate([first, np.full(grown, np.iinfo(np.int64).max)])
            last = np.concatenate([last, np.full(grown, np.iinfo(np.int64).min)])
            count = np.concatenate([count, np.zeros(grown, dtype=np.int64)])
            latest = last.copy()  # before this batch
            if columns is None:
                order = np.argsort(codes, kind="stable")
                same = np.diff(codes[order]) == 0
                begins = order[np.concatenate([[True], ~same])]
                report.unsorted |= bool((np.diff(numbers[order])[same] < 0).any())
                report.unsorted |= bool((numbers[begins] < latest[codes[begins]]).any())
                np.minimum.at(first, codes, numbers)
                np.maximum.at(last, codes, numbers)
                np.add.at(count, codes, 1)
            else:
                report.unsorted |= bool((np.diff(numbers) < 0).any() or (numbers[0] < latest[codes]).any())
                first[codes] = np.minimum(first[codes], numbers.min())
                last[codes] = np.maximum(last[codes], numbers.max())
                count[codes] += len(numbers)
    if not len(first):
        raise ValueError(f"{files[0].path} has no rows below its header; there is nothing to train on.")
    known.check()
    lengths = last - first + 1
    sparse = lengths > _SPARE_STEPS + _MOST_STEPS_PER_READING * count
    names = list(known.codes)
    if sparse.any():
        code = int(sparse.argmax())
        begin, end = clock.frequency.stamps(np.array([first[code], last[code]]))
        between = f"between {begin} and {end}" if debugging() else "between its first and its last stamp"
        raise ValueError(
            f"customer {told_place(code, names[code])} has too few readings for the "
            f"{lengths[code]} steps of {clock.frequency} {between}: a stamp or reading.frequency must be "
            "wrong."
        )
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    report.customers = len(names)
    report.names = [known.spelled[code] for code in order[:_NAMES]]
    report.frequency = str(clock.frequency)
    begin, end = clock.frequency.stamps(np.array([first.min(), last.max()]))
    report.first, report.last = str(begin), str(end)
    return _Extents(
        ids=[names[code] for code in order],
        spelled=[known.spelled[code] for code in order],
        reading=reading,
        first=first[order],
        lengths=lengths[order],
    )


class _Cells:
    """The array on disk while it is filled. It is mapped anew for each batch, so that no page stays."""

    def __init__(
        self,
        folder: Path,
        *,
        extents: _Extents,
        num_channels: int,
        num_covariates: int,
        reading: Reading,
        months: bool,
    ) -> None:
        self.folder = folder
        self._extents = extents
        self._months = months
        self.num_channels = num_channels
        self.duplicates = 0
        self._rule = reading.duplicates
        total = int(extents.lengths.sum())
        self._create(CELLS, shape=(total, num_channels + num_covariates), fill=np.float64(np.nan))
        self._create("seen.npy", shape=(total,), fill=np.uint8(0))
        if self._rule == "mean":
            self._create("counts.npy", shape=(total, num_channels), fill=np.uint32(0))

    def _create(self, name: str, *, shape: tuple[int, ...], fill: Any) -> None:
        array = np.lib.format.open_memmap(self.folder / name, mode="w+", dtype=fill.dtype, shape=shape)
        del array  # the file has its size; a piece at a time, or all of it would be in memory
        step = max(1, (2 << 20) // max(1, int(np.prod(shape[1:]))))
        for start in range(0, shape[0], step):
            self.open(name)[start : start + step] = fill

    def open(self, name: str) -> np.ndarray:
        """The array of a file, to read and write."""
        return np.load(self.folder / name, mmap_mode="r+")

    def put(
        self,
        positions: np.ndarray,
        targets: np.ndarray,
        covariates: np.ndarray,
        *,
        repeated: np.ndarray,
        rows: Rows,
    ) -> None:
        """Write cells.

        Args:
            positions: (M,) rows of the array.
            targets: (M, C).
            covariates: (M, K − C).
            repeated: (M,) bool, True where the position stands further up as well.
            rows: R rows where they are from, M / R cells each.
        """
        seen, cells = self.open("seen.npy"), self.open(CELLS)
        again = (seen[positions] > 0) | repeated
        if again.any() and self._rule == "error":
            place = int(again.argmax())
            row = place // (len(positions) // len(rows))
            code = int(np.searchsorted(self._extents.offsets, positions[place], "right")) - 1
            name = f" {self._extents.ids[code]!r}" if debugging() else ""
            where = f"{rows.file}, {rows.counted} {rows.numbers[row]}: its customer{name}"
            if self._months:
                raise ValueError(
                    f"{where} has a second reading in the same month or months: if readings are more often "
                    "than "
                    "that, set reading.frequency to their step, such as 'D' or '28D'; if the row is there "
                    "twice, remove it."
                )
            raise ValueError(
                f"{where} has a second reading for the same time: remove it, or set reading.duplicates to "
                "'first' or 'mean' (not where clocks were set back: there stamps need their offset)."
            )
        self.duplicates += int(again.sum())
        new = ~again if again.any() else slice(None)
        cells[positions[new], self.num_channels :] = covariates[new]
        if self._rule == "mean":
            counts = self.open("counts.npy")
            known = ~np.isnan(targets)
            cells[positions[new], : self.num_channels] = 0
            for channel in range(self.num_channels):
                chosen = known[:, channel]
                np.add.at(cells[:, channel], positions[chosen], targets[chosen, channel])
                np.add.at(counts[:, channel], positions[chosen], 1)
        else:
            cells[positions[new], : self.num_channels] = targets[new]
        seen[positions] = 1


def _finish(cells: _Cells, *, extents: _Extents, layout: Layout, clock: _Clock, report: TableReport) -> None:
    """Means of duplicates, covariates without holes, what there is to report, and the index."""
    channels = layout.channel_names
    missing = np.zeros(len(channels))
    begins, ends = np.zeros_like(extents.lengths), extents.lengths.copy()
    for code, name in enumerate(extents.spelled):
        part = slice(extents.offsets[code], extents.offsets[code] + extents.lengths[code])
        array = cells.open(CELLS)
        if (cells.folder / "counts.npy").exists():
            counts = cells.open("counts.npy")[part]
            with np.errstate(invalid="ignore", divide="ignore"):
                array[part, : len(channels)] = np.where(
                    counts > 0, array[part, : len(channels)] / counts, np.nan
                )
        values = np.array(array[part, : len(channels)])  # (T, C)
        absent = cells.open("seen.npy")[part] == 0
        known = ~np.isnan(values)
        rows = np.flatnonzero(known.any(axis=1))
        if len(rows):
            begins[code], ends[code] = rows[0], rows[-1] + 1
            report.rows_before += int((~absent[: rows[0]]).sum())
            ahead = int((~absent[rows[-1] + 1 :]).sum())
            report.future_rows += ahead
            report.future_customers += ahead > 0
        else:
            ends[code] = 0
            report.empty.append(name)
        for channel, label in enumerate(channels):
            column = values[known[:, channel], channel]
            report.readings += len(column)
            if len(column) > 1 and (column == column[0]).all():
                report.constant.append(name if len(channels) == 1 else f"{name}/{label}")
            _note_rounding(column, report=report)
        covariates = np.array(array[part, len(channels) :])  # (T, K − C)
        report.missing_covariates += _fill(covariates)
        array[part, len(channels) :] = covariates
        report.gap_steps += int(absent.sum())
        report.customers_with_gaps += bool(absent.any())
        report.longest_gap = max(report.longest_gap, _longest_run(absent))
        missing += (~known).sum(axis=0)
    report.steps = int(extents.lengths.sum())
    report.duplicates = cells.duplicates
    report.missing_share = {
        name: float(share) for name, share in zip(channels, missing / max(report.steps, 1), strict=True)
    }
    for name in ("seen.npy", "counts.npy"):
        (cells.folder / name).unlink(missing_ok=True)
    np.savez(
        cells.folder / INDEX,
        ids=np.array(extents.ids, dtype=np.str_),
        spelled=np.array(extents.spelled, dtype=np.str_),
        offsets=extents.offsets,
        clock=extents.first,
        first_rows=begins,
        end_rows=ends,
        all_rows=extents.lengths,
        aware=np.array(clock.offsets.aware),
        frequency=np.array([clock.frequency.nanoseconds, clock.frequency.months, clock.frequency.phase]),
    )


def _note_rounding(column: np.ndarray, *, report: TableReport) -> None:
    """Count the readings of one series that windows, which are fp32, don't give back as they were written."""
    small = column.astype(np.float32).astype(np.float64)
    off = np.abs(small - column)
    lost = (off > 0) | (np.abs(column) > 2**53)  # fp64 itself has rounded whole numbers beyond
    for digits in range(7):
        if not lost.any():
            return
        # With so many digits after the point the number is what it was.
        written = np.round(column, digits) == column
        lost &= ~(written & (np.round(small, digits) == column) & (np.abs(column) <= 2**53))
    if lost.any():
        report.rounded += int(lost.sum())
        spread = float(column.max() - column.min())
        report.rounded_most = max(report.rounded_most, float(off.max()))
        if spread > 0:
            report.rounded_share = max(report.rounded_share, float(off.max()) / spread)


def _longest_run(flags: np.ndarray) -> int:
    """Of True, one after the other."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def _fill(columns: np.ndarray) -> int:
    """Give every hole of (T, F) its column's last known value, else its first; count the holes."""
    holes = np.isnan(columns)
    for column, hole in zip(columns.T, holes.T, strict=True):
        if hole.any() and not hole.all():
            rows = np.where(hole, 0, np.arange(len(column)))
            rows = np.maximum.accumulate(rows)
            column[:] = column[rows]
            column[np.isnan(column)] = column[~np.isnan(column)][0]
    return int(holes.sum())


def _repeated(keys: np.ndarray) -> np.ndarray:
    """(R,) bool, True where a key stands further up as well."""
    repeated = np.ones(len(keys), dtype=bool)
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated


def _keys(
    files: list[TableFile], *, layout: Layout, reading: Reading, report: TableReport | None = None
) -> Iterator[tuple[Rows, pa.Array | None]]:
    """The columns that say who and when, without the rest and without rows of nobody, which are counted."""
    for file in files:
        needed = layout.needed_columns(file)  # complains about what is absent
        who = [] if layout.customers(file) is not None else [needed[0]]
        for rows in file.read([*who, layout.time_column]):
            owned = layout.owned(rows, reading=reading)
            if report is not None:
                report.rows_of_nobody += len(rows) - len(owned[0])
            yield owned


def _codes(names: pa.Array | None, known: dict[str, int]) -> np.ndarray:
    """(R,) numbers of names; new ones are added to `known`."""
    assert names is not None
    encoded = names.dictionary_encode()
    codes = np.array(
        [known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()], dtype=int
    )
    return codes[encoded.indices.to_numpy(zero_copy_only=False)] if len(names) else np.empty(0, dtype=int)
