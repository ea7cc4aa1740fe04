"""CSV and Parquet files as a stream of batches of rows that know which line they are from."""

import contextlib
import glob
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from lightning_dp.archives import check_packed, inside
from lightning_dp.timeseries.data.own_table.text_source import (
    TextSource,
    first_bytes,
    odd_quotes,
    wrong_encoding,
)
from lightning_dp.told import debugging, told_error

_CSV_BLOCK_BYTES = 8 << 20
_LONGEST_HEADER = 4 << 20
_PARQUET_BATCH_CELLS = 1 << 19
_PARQUET_BUFFER_BYTES = 1 << 14  # a column


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some consecutive rows of one file.

    Attributes:
        file: where they are from.
        columns: R values each, by column name; text for CSV, typed for Parquet.
        numbers: (R,) their numbers in the file, the first line of a CSV file being 1.
        counted: what is counted: "line" or "row".
    """

    file: Path
    columns: dict[str, pa.Array]
    numbers: np.ndarray
    counted: str

    def __len__(self) -> int:
        return len(self.numbers)

    def only(self, kept: np.ndarray) -> "Rows":
        """Those of a (R,) bool."""
        mask = pa.array(kept)
        columns = {name: array.filter(mask) for name, array in self.columns.items()}
        return Rows(file=self.file, columns=columns, numbers=self.numbers[kept], counted=self.counted)

    def where(self, row: int, column: str, *, shown: str | None = None) -> str:
        """The address of a cell, for error messages; `shown` for a column whose name tells of somebody."""
        return f"{self.file}, {self.counted} {self.numbers[row]}, column {shown or repr(column)}"


class TableFile(ABC):
    """One file of a table.

    Attributes:
        path: where it is.
        column_names: of all its columns, in its order.
    """

    path: Path
    column_names: list[str]

    @abstractmethod
    def read(self, columns: Sequence[str]) -> Iterator[Rows]:
        """The rows in order, a bounded number of cells at a time; only `columns`, which the file has."""


@final
class CSVFile(TableFile):
    """A file of delimited text with one line that names its columns; packed by gzip if it ends in .gz."""

    def __init__(self, path: Path, *, delimiter: str, encoding: str = "utf-8", skip_lines: int = 0) -> None:
        self.path = path
        self._delimiter = delimiter
        self._encoding = encoding
        self._skipped = skip_lines
        start = first_bytes(path, _LONGEST_HEADER)
        if not start.strip():
            raise ValueError(f"{path} is empty; its first line must name the columns.")
        if b"\0" in start.split(b"\n")[0] and "16" not in encoding and "32" not in encoding:
            error = wrong_encoding(path, encoding=encoding)
            if "UTF-16" not in str(error):
                error = ValueError(
                    f"{path}, line 1 holds a zero byte, which text has none of: it may be in UTF-16, then "
                    "set reading.encoding to 'utf-16-le'."
                )
            raise error
        try:
            with self._open(pa_csv.ConvertOptions(), block_bytes=_LONGEST_HEADER) as reader:
                self.column_names = list(reader.schema.names)
        except UnicodeDecodeError:
            raise wrong_encoding(path, encoding=encoding) from None
        _check_names(self)

    def read(self, columns: Sequence[str]) -> Iterator[Rows]:
        options = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=False,
            null_values=[],
        )
        line = 2 + self._skipped
        with self._open(options, block_bytes=_CSV_BLOCK_BYTES) as reader:
            source = self._source
            for batch in self._guarded(reader):
                numbers = np.arange(line, line + batch.num_rows)
                line += batch.num_rows
                blank = _blank(batch)
                if blank.any():
                    batch, numbers = batch.filter(pa.array(~blank)), numbers[~blank]
                arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield Rows(file=self.path, columns=arrays, numbers=numbers, counted="line")
            if line - 1 < source.lines:
                raise self._unclosed(odd_quotes(self.path) or 1)

    @contextlib.contextmanager
    def _open(
        self, options: pa_csv.ConvertOptions, *, block_bytes: int
    ) -> Iterator[pa_csv.CSVStreamingReader]:
        self._ragged: pa_csv.InvalidRow | None = None

        def note(row: pa_csv.InvalidRow) -> str:
            self._ragged = row
            return "error"

        with contextlib.closing(TextSource(self.path, encoding=self._encoding)) as self._source:
            try:
                reader = pa_csv.open_csv(
                    self._source,
                    # One thread: only then does Arrow number the lines.
                    read_options=pa_csv.ReadOptions(
                        use_threads=False, block_size=block_bytes, skip_rows=self._skipped
                    ),
                    # An empty line has to be seen to be counted.
                    parse_options=pa_csv.ParseOptions(
                        delimiter=self._delimiter, ignore_empty_lines=False, invalid_row_handler=note
                    ),
                    convert_options=options,
                )
            except pa.ArrowInvalid as error:
                raise self._explain(error) from None
            with reader:
                yield reader

    def _guarded(self, reader: pa_csv.CSVStreamingReader) -> Iterator[pa.RecordBatch]:
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            except pa.ArrowInvalid as error:
                raise self._explain(error) from None
            yield batch

    def _unclosed(self, line: int) -> ValueError:
        return ValueError(
            f"{self.path}, line {line} opens a quote that is not closed there, so that lines below would be "
            "read as parts of a cell: close it, or take the line breaks out of the cells."
        )

    def _explain(self, error: pa.ArrowInvalid) -> ValueError:
        row = self._ragged
        if row is not None:
            odd = odd_quotes(self.path)
            if 0 < odd <= (row.number or 0):
                return self._unclosed(odd)
            return ValueError(
                f"{self.path}, line {row.number} has {row.actual_columns} cells where the header names "
                f"{row.expected_columns}; mend the line, or set reading.delimiter if columns are not "
                f"separated by {self._delimiter!r}, or reading.skip_lines if the names stand further down."
            )
        if "UTF8" in str(error):
            return wrong_encoding(self.path, encoding=self._encoding)
        return ValueError(f"{self.path} can't be read as CSV ({told_error(error)}).")


@final
class ParquetFile(TableFile):
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self.column_names = list(file.schema_arrow.names)
        _check_names(self)

    def read(self, columns: Sequence[str]) -> Iterator[Rows]:
        row = 1
        size = max(1, _PARQUET_BATCH_CELLS // len(columns))
        with self._open() as file:
            batches = file.iter_batches(batch_size=size, columns=list(columns), use_threads=False)
            for batch in _guarded(batches, path=self.path):
                arrays = {
                    name: _plain(array) for name, array in zip(batch.schema.names, batch.columns, strict=True)
                }
                numbers = np.arange(row, row + batch.num_rows)
                yield Rows(file=self.path, columns=arrays, numbers=numbers, counted="row")
                row += batch.num_rows

    def _open(self) -> pa_parquet.ParquetFile:
        try:
            # Arrow's own choice would fetch a whole file before its first row.
            file = pa_parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} can't be read as Parquet ({told_error(error)}).") from None
        groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
        unpacked = sum(group.total_byte_size for group in groups)
        check_packed(self.path, packed=self.path.stat().st_size, unpacked=unpacked)
        return file


def _plain(array: pa.Array) -> pa.Array:
    """Without the packing that a file chose for its column."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _plain(pc.cast(array, kind.value_type))
    return pc.cast(array, pa.string()) if pa.types.is_string_view(kind) else array


def _guarded(batches: Iterator[pa.RecordBatch], *, path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a file that may be damaged further down."""
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} can't be read as Parquet ({told_error(error)}).") from None
        if batch is None:
            return
        yield batch


def find_files(path: str, *, delimiter: str, encoding: str = "utf-8", skip_lines: int = 0) -> list[TableFile]:
    """The files that `path` means, sorted by name.

    Args:
        path: a file, a folder (all its .csv, .csv.gz and .parquet files), or a pattern such as `data/*.csv`.
        delimiter: between the columns of CSV files.
        encoding: of CSV files.
        skip_lines: lines of a CSV file before the one that names its columns.

    Raises:
        ValueError: there are none, or one of them has another ending.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = [file for file in place.iterdir() if _is_table(file)]
        for file in found:
            if not inside(file, place):
                raise ValueError(
                    f"{file} is a link that leads out of {place}: put the file itself there, or remove the "
                    "link."
                )
    elif place.exists():
        found = [place]
    else:
        found = [Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file()]
    if not found:
        raise ValueError(
            f"path={path} names no .csv or .parquet file: give a file, a folder that holds some, or a "
            "pattern such as 'folder/*.csv'."
        )
    files: list[TableFile] = []
    for file in sorted(found):
        if _ending(file) == ".parquet":
            files.append(ParquetFile(file))
        elif _ending(file) in (".csv", ".csv.gz"):
            files.append(CSVFile(file, delimiter=delimiter, encoding=encoding, skip_lines=skip_lines))
        else:
            raise ValueError(
                f"{file} ends in {file.suffix!r}; a table is a .csv or a .parquet file: "
                f"{_WAYS.get(file.suffix.lower(), 'save it as one of these')}."
            )
    return files


def left_out(path: str) -> list[str]:
    """Names in a folder that `find_files` passes over, folders and hidden files included."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return []
    return sorted(entry.name for entry in place.iterdir() if not _is_table(entry))


_WAYS = {
    ".zip": "unpack it, or pack it with gzip as .csv.gz",
    ".xlsx": "save the sheet as CSV",
    ".xls": "save the sheet as CSV",
    ".tsv": "name it .csv and set reading.delimiter to a tab",
    ".txt": "name it .csv if it is delimited text, and set reading.delimiter",
    ".gz": "name it .csv.gz if it is a packed CSV file",
}


def _ending(file: Path) -> str:
    name = file.name.lower()
    return ".csv.gz" if name.endswith(".csv.gz") else file.suffix.lower()


def _is_table(file: Path) -> bool:
    # A hidden file is somebody's lock, or what a Mac keeps beside the real one.
    return (
        not file.name.startswith(".")
        and not file.is_dir()
        and _ending(file) in (".csv", ".csv.gz", ".parquet")
    )


def _blank(batch: pa.RecordBatch) -> np.ndarray:
    """(R,) bool, True for a line without content."""
    blank = np.ones(batch.num_rows, dtype=bool)
    for array in batch.columns:
        if not blank.any():
            break
        blank &= pc.equal(array, "").to_numpy(zero_copy_only=False)
    return blank


def _check_names(file: TableFile) -> None:
    seen: dict[str, int] = {}
    for number, name in enumerate(file.column_names, start=1):
        if name in seen:
            shown = f", {name!r}" if debugging() else ""
            raise ValueError(
                f"{file.path} has one name for its columns {seen[name]} and {number}{shown}: rename one "
                "of them."
            )
        seen[name] = number
