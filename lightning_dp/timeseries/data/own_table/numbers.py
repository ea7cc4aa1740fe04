"""Cells as numbers; one that is none is named by file, line and column, with a way to read it."""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lightning_dp.timeseries.data.own_table.files import Rows
from lightning_dp.timeseries.data.own_table.reading import BLANKS, Reading
from lightning_dp.told import told_number, told_place

_LARGEST = float(np.finfo(np.float32).max)  # windows are fp32
_TRIED = 1000  # cells that a suggested mark has to read
_APOSTROPHES = ("'", "’")
_NUMBER_WITH_MARKS = re.compile(rf"[+-]?\d[\d.,'’_{''.join(BLANKS)}]*[.,'’_{''.join(BLANKS)}][\d.,]*")


@dataclass(kw_only=True)
class Marks:
    """Per column of text, whether its marks can be read in one way only, over a whole table.

    A column of 1,234 and 5,678 alone holds thousands or fractions; a single 0,5 or 1234,5 settles it.
    """

    doubtful: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    def note(self, column: str, *, place: str | None, settled: bool) -> None:
        """What a batch says of a column: the place of a number with two readings, or that there is one."""
        if settled:
            self.settled.add(column)
        elif place is not None:
            self.doubtful.setdefault(column, place)

    def check(self, *, reading: Reading) -> None:
        """Refuse what nothing settles."""
        for column, place in self.doubtful.items():
            if column not in self.settled:
                mark, other = reading.decimal, "," if reading.decimal == "." else "."
                raise ValueError(
                    f"{place} holds a number with three digits after its {mark!r}, as all numbers of its "
                    f"column with that mark: if it marks thousands, set reading.thousands to {mark!r} and "
                    f"reading.decimal to {other!r}; if it marks fractions, set reading.thousands to ''."
                )


def read_numbers(
    rows: Rows, columns: list[str], *, reading: Reading, named: bool = True, marks: Marks | None = None
) -> np.ndarray:
    """(R, len(columns)) fp64, NaN where a cell is missing.

    Args:
        rows: R rows.
        columns: of them.
        reading: how they are written.
        named: False where columns are called by their customers, who are not named in messages.
        marks: what other rows of the table say of its marks; updated.

    Raises:
        ValueError: a cell holds neither a number that fp32 has room for nor a text that means missing.
    """
    arrays = [rows.columns[column] for column in columns]
    if arrays and all(_is_text(array) for array in arrays):
        # At once: per column it would take a moment for each of ten thousand columns.
        text = _clean(pa.concat_arrays(arrays), reading=reading)
        if marks is not None:
            _note_marks(text, rows, columns, reading=reading, marks=marks, named=named)
        values = _parse(text, reading=reading).reshape(len(columns), len(rows)).T
    else:
        values = (
            np.stack(
                [_column(rows, column, reading=reading, marks=marks, named=named) for column in columns],
                axis=1,
            )
            if columns
            else np.empty((len(rows), 0))
        )
    for number in reading.missing_numbers:
        if not np.isnan(number):
            values = np.where(values == number, np.nan, values)
    with np.errstate(invalid="ignore"):
        wrong = np.abs(values) > _LARGEST
    # What could not be parsed is left as an infinity, which no reading is.
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        cell = rows.columns[columns[column]][row].as_py()
        raise ValueError(
            f"{rows.where(row, columns[column], shown=_shown(columns, column, named=named))} holds "
            f"{told_number(cell)}, which is no finite number: mend it, or list it in "
            "reading.missing_values if "
            f"it means that nothing was measured{_hint(arrays[column], cell, reading=reading)}."
        )
    return values


def _shown(columns: list[str], column: int, *, named: bool) -> str | None:
    return None if named else f"of customer {told_place(column, columns[column])}"


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _column(rows: Rows, column: str, *, reading: Reading, marks: Marks | None, named: bool) -> np.ndarray:
    array = rows.columns[column]
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if _is_text(array):
        text = _clean(array, reading=reading)
        if marks is not None:
            _note_marks(text, rows, [column], reading=reading, marks=marks, named=named)
        return _parse(text, reading=reading)
    try:
        values = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowNotImplementedError:
        raise ValueError(
            f"{rows.file}, column {column!r} holds {array.type}, which are no numbers: choose another column."
        ) from None
    if pa.types.is_float32(array.type) or pa.types.is_float16(array.type):
        kind = array.type.to_pandas_dtype()
        with np.errstate(over="ignore"):
            for number in reading.missing_numbers:  # as the column can hold it
                values = np.where(values == np.float64(kind(number)), np.nan, values)
    return values


def _clean(text: pa.Array, *, reading: Reading) -> pa.Array:
    """Without blanks at the ends, null where missing."""
    text = pc.utf8_trim_whitespace(text)
    missing = pc.is_in(text, value_set=pa.array(reading.missing_texts, type=text.type))
    return pc.if_else(missing, pa.scalar(None, type=text.type), text)


def _parse(text: pa.Array, *, reading: Reading) -> np.ndarray:
    """fp64: NaN where null, ∞ where it is no number."""
    wrong = None
    if reading.thousands:
        text, wrong = _ungrouped(text, reading=reading)
    if reading.decimal != ".":
        other = pc.fill_null(pc.match_substring(text, "."), False)
        wrong = other if wrong is None else pc.or_(wrong, other)
        text = pc.replace_substring(text, reading.decimal, ".")
    try:
        numbers = pc.cast(text, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        plain = pc.replace_substring(text, "\u2212", "-")  # a minus as typesetters write it
        parsed = pd.to_numeric(plain.to_pandas(), errors="coerce").to_numpy(dtype=np.float64)
        failed = np.isnan(parsed) & ~pc.is_null(text).to_numpy(zero_copy_only=False)
        numbers = np.where(failed, np.inf, parsed)
    if wrong is not None:
        numbers = np.where(wrong.to_numpy(zero_copy_only=False), np.inf, numbers)
    return numbers


def _ungrouped(text: pa.Array, *, reading: Reading) -> tuple[pa.Array, pa.Array]:
    """Numbers without marks of thousands, and (R,) bool, True where those marks stand in odd places."""
    assert reading.thousands
    marks: tuple[str, ...] = (reading.thousands,)
    if reading.thousands in BLANKS:
        marks = BLANKS
    elif reading.thousands in _APOSTROPHES:
        marks = _APOSTROPHES
    each = f"[{re.escape(''.join(marks))}]" if len(marks) > 1 else rf"[{marks[0]}]"
    grouped = pc.fill_null(pc.match_substring_regex(text, each), False)
    if not pc.any(grouped).as_py():
        return text, grouped
    # Groups of two are how lakhs and crores are written.
    well = (
        rf"^[+\-\x{{2212}}]?\d{{1,3}}({each}\d{{2,3}})*{each}\d{{3}}([{reading.decimal}]\d*)?([eE][+-]?\d+)?$"
    )
    wrong = pc.and_(grouped, pc.invert(pc.fill_null(pc.match_substring_regex(text, well), False)))
    for mark in marks:
        text = pc.replace_substring(text, mark, "")
    return text, wrong


def _note_marks(
    text: pa.Array, rows: Rows, columns: list[str], *, reading: Reading, marks: Marks, named: bool
) -> None:
    # A point is the mark of fractions wherever the delimiter is none that a decimal comma asks for.
    if reading.thousands is not None or (reading.decimal == "." and reading.delimiter != ";"):
        return
    if all(column in marks.settled for column in columns):
        return
    marked = pc.fill_null(pc.match_substring(text, reading.decimal), False)
    if not pc.any(marked).as_py():
        return
    double = pc.fill_null(
        pc.match_substring_regex(text, rf"^[+-]?[1-9]\d{{0,2}}[{reading.decimal}]\d{{3}}$"), False
    )
    shape = (len(columns), len(rows))
    either = double.to_numpy(zero_copy_only=False).reshape(shape)
    plain = marked.to_numpy(zero_copy_only=False).reshape(shape) & ~either
    for index, column in enumerate(columns):
        place = None
        if either[index].any():
            shown = _shown(columns, index, named=named)
            place = rows.where(int(either[index].argmax()), column, shown=shown)
        marks.note(column, place=place, settled=bool(plain[index].any()))


def _hint(array: pa.Array, cell: object, *, reading: Reading) -> str:
    """How else the column can be read, if marks are what is in the way."""
    if not isinstance(cell, str) or not _NUMBER_WITH_MARKS.fullmatch(cell.strip()):
        return ""
    column = pc.unique(_clean(array, reading=reading)).drop_null().slice(0, _TRIED)
    used = {mark for text in column.to_pylist() for mark in text if not mark.isalnum() and mark not in "+-"}
    thousands: dict[str, str] = {}
    fractions: dict[str, str] = {}
    for decimal in (".", ","):
        for mark in ("", *sorted(used - {decimal})):
            try:
                other = Reading(decimal=decimal, thousands=mark, delimiter="\t")
            except ValueError:
                continue
            if not np.isfinite(_parse(column, reading=other)).all():
                continue
            if mark and (decimal in used or decimal == "." or mark == "."):
                change = "" if decimal == reading.decimal else f" and reading.decimal to {decimal!r}"
                thousands.setdefault(mark, f"set reading.thousands to {mark!r}{change}")
            elif not mark and decimal in used:
                unset = " and reading.thousands to ''" if decimal == reading.thousands else ""
                fractions[decimal] = f"set reading.decimal to {decimal!r}{unset}"
    for mark in thousands.keys() & fractions.keys():
        return (
            f"; if {mark!r} marks thousands, {thousands[mark]}; if it marks fractions, {fractions[mark]} and "
            "reading.thousands to ''"
        )
    for sentence in (*thousands.values(), *fractions.values()):
        return f"; {sentence}, by which all of its column can be read"
    return "; its column mixes marks in ways that no reading.decimal and reading.thousands fit"
