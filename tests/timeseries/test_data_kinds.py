"""Kinds of awkward tables: each is read right, value by value, or refused in a sentence with a way out.

`docs/results/inputs.md` lists what became of them.
"""

import gzip
import unicodedata
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from lightning_dp.timeseries.data.own_table.convert import CELLS, INDEX, convert
from lightning_dp.timeseries.data.own_table.files import find_files
from lightning_dp.timeseries.data.own_table.frequency import Frequency
from lightning_dp.timeseries.data.own_table.layout import Covariates, Layout, Long, Wide
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.report import TableReport
from lightning_dp.timeseries.data.own_table.split import ByTime

LONG = Long(id_column="id", time_column="time", target_columns=["y"])
WIDE = Wide(time_column="time")
HOURS = [f"2024-01-01 {hour:02}:00" for hour in range(24)]
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A table, and what has to become of it.

    Attributes:
        name: of the kind.
        files: name → content.
        reading: settings.
        values: customer → readings from the first to the last row of theirs; NaN = missing.
        stamps: of the first customer's steps.
        report: field → value.
        words: of the sentence that refuses it; none where it is read.
        absent: what that sentence must not advise.
        layout: of its columns.
    """

    name: str
    files: dict[str, Any]
    reading: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[float]] | None = None
    stamps: list[str] | None = None
    report: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    layout: Layout = LONG


@dataclass(frozen=True, kw_only=True)
class Found:
    """What conversion wrote."""

    values: dict[str, list[float]]
    stamps: list[pd.Timestamp]
    report: TableReport


def convert_files(folder, files: dict[str, Any], *, layout: Layout, **settings) -> Found:
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    for name, content in files.items():
        if isinstance(content, pa.Table):
            parquet.write_table(content, folder / "in" / name)
        else:
            (folder / "in" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    reading = Reading(**settings)
    path = folder / "in" / next(iter(files)) if len(files) == 1 else folder / "in"
    found = find_files(
        str(path), delimiter=reading.delimiter, encoding=reading.encoding, skip_lines=reading.skip_lines
    )
    report = convert(found, layout=layout, reading=reading, folder=folder / "out")
    cells = np.load(folder / "out" / CELLS)
    with np.load(folder / "out" / INDEX) as index:
        spans = zip(index["spelled"].tolist(), index["offsets"], index["all_rows"], strict=True)
        values = {name: cells[start : start + rows, 0].tolist() for name, start, rows in spans}
        nanoseconds, months, phase = index["frequency"].tolist()
        frequency = Frequency(nanoseconds=nanoseconds, months=months, phase=phase)
        stamps = list(frequency.stamps(index["clock"][0] + np.arange(index["all_rows"][0])))
    return Found(values=values, stamps=stamps, report=report)


def rows(*lines: str, head: str = "id,time,y", end: str = "\n") -> str:
    return end.join([head, *lines]) + end


def numbers(
    name: str, cells: list[str], expected: list[float] | None = None, *words: str, **settings
) -> Kind:
    """A column of these texts, in a file whose delimiter doesn't meet them."""
    absent = settings.pop("absent", ())
    settings = {"delimiter": "|", "frequency": "h", **settings}
    mark = settings["delimiter"]
    lines = [mark.join(["a", stamp, cell]) for stamp, cell in zip(HOURS, cells, strict=False)]
    content = rows(*lines, head=mark.join(["id", "time", "y"]))
    values = None if expected is None else {"a": expected}
    return Kind(
        name=f"number: {name}",
        files={"t.csv": content},
        reading=settings,
        values=values,
        words=words,
        absent=absent,
    )


def stamps(name: str, cells: list[str], expected: list[str] | None = None, *words: str, **settings) -> Kind:
    """A column of these stamps."""
    absent = settings.pop("absent", ())
    mark = settings.setdefault("delimiter", "|")
    lines = [mark.join(["a", cell, str(number)]) for number, cell in enumerate(cells)]
    return Kind(
        name=f"stamp: {name}",
        files={"t.csv": rows(*lines, head=mark.join(["id", "time", "y"]))},
        reading=settings,
        stamps=expected,
        words=words,
        absent=absent,
    )


def of_ids(name: str, cells: list[str], expected: list[str] | None = None, *words: str, **settings) -> Kind:
    """A reading of each id, an hour apart."""
    lines = [f"{one}|{HOURS[place]}|{place}" for place, one in enumerate(cells)]
    return Kind(
        name=f"id: {name}",
        files={"t.csv": rows(*lines, head="id|time|y")},
        reading={"delimiter": "|", "frequency": "h", **settings},
        values=None if expected is None else dict.fromkeys(expected),
        words=words,
    )


def typed(name: str, expected: dict | None = None, *words: str, layout=LONG, report=None, **given) -> Kind:
    """A Parquet table; columns that aren't given are as usual."""
    settings = {name: given.pop(name) for name in list(given) if name in Reading.__dataclass_fields__}
    columns = {
        "id": pa.array(["a", "a", "a"]),
        "time": pa.array([datetime(2024, 1, 1, hour) for hour in range(3)]),
        "y": pa.array([0.0, 1.0, 2.0]),
        **given,
    }
    return Kind(
        name=f"Parquet: {name}",
        files={"t.parquet": pa.table(columns)},
        reading=settings,
        values=expected,
        words=words,
        report=report or {},
        layout=layout,
    )


def file(
    name: str, content, expected=None, *words: str, layout=LONG, report=None, as_name="t.csv", **settings
):
    files = content if isinstance(content, dict) else {as_name: content}
    return Kind(
        name=f"file: {name}",
        files=files,
        reading=settings,
        values=expected,
        words=words,
        layout=layout,
        report=report or {},
    )


def steps(name: str, days: list[int], found: str | None, *words: str, start="2024-01-01", **settings) -> Kind:
    """Readings so many days after a first one."""
    first = datetime.fromisoformat(start)
    lines = [f"a,{first + timedelta(days=day)},{number}" for number, day in enumerate(days)]
    return Kind(
        name=f"frequency: {name}",
        files={"t.csv": rows(*lines)},
        reading=settings,
        values=None if words else {"a": [float(number) for number in range(len(days))]},
        report={"frequency": found} if found else {},
        words=words,
        absent=("duplicates",),
    )


def month_starts(count: int, *, months: int = 1, day: int = 1, start: int = 2023 * 12) -> list[int]:
    first = date(2023, 1, 1)
    found = []
    for number in range(start, start + count * months, months):
        found.append((date(number // 12, number % 12 + 1, day) - first).days)
    return found


def in_a_file(**columns: list[str]) -> str:
    names = list(columns)
    return rows(*map(",".join, zip(*columns.values(), strict=True)), head=",".join(names))


THREE = [0.0, 1.0, 2.0]
PLAIN = rows(*(f"a,{HOURS[hour]},{hour}" for hour in range(3)))
WIDE_ROWS = {"time": HOURS[:4], "a": ["5", "6", "9", "2"], "b": ["1", "3", "2", "8"]}

NUMBERS = [
    numbers("decimal points", ["1.5", "-2.25"], [1.5, -2.25]),
    numbers("decimal commas", ["1,5", "0,25"], [1.5, 0.25], decimal=","),
    numbers("a point with a decimal comma", ["1.000", "2.000"], None, "if '.' marks thousands", decimal=","),
    numbers(
        "a point of thousands", ["1.000", "12.345,5", "7"], [1000, 12345.5, 7], decimal=",", thousands="."
    ),
    numbers("a comma with no setting", ["1,5", "2,5"], None, "set reading.decimal to ','"),
    numbers(
        "thousands by comma, all alike", ["1,000", "2,000"], None, "marks thousands, set reading.thousands"
    ),
    numbers(
        "the same with a decimal comma", ["1,000", "2,000"], None, "reading.thousands to ''", decimal=","
    ),
    numbers("the same, said to be thousands", ["1,000", "2,000"], [1000, 2000], thousands=","),
    numbers("said to be fractions", ["1,000", "2,000"], [1, 2], decimal=",", thousands=""),
    numbers("settled by a zero", ["1,000", "0,500"], [1, 0.5], decimal=","),
    numbers("settled by four digits", ["1,000", "1234,500"], [1, 1234.5], decimal=","),
    numbers("settled by one decimal", ["1,000", "2,5"], [1, 2.5], decimal=","),
    numbers("points in a file with ;", ["1.000", "2.000"], None, "three digits after its '.'", delimiter=";"),
    numbers("points and 0.5 with ;", ["1.000", "0.5"], [1, 0.5], delimiter=";"),
    numbers("points, said to be fractions", ["1.000"], [1], delimiter=";", thousands=""),
    numbers("both marks, English", ["1,234.5", "2"], None, "set reading.thousands to ','"),
    numbers("both marks, English, said", ["1,234.5", "2", "1,234,567"], [1234.5, 2, 1234567], thousands=","),
    numbers("both marks, German", ["1.234,5"], None, "reading.thousands to '.' and reading.decimal to ','"),
    numbers("lakhs and crores", ["12,34,567.5"], [1234567.5], thousands=","),
    numbers("a group of two at the end", ["1,00"], None, "no finite number", thousands=","),
    numbers("a mark at the start", [",100"], None, "no finite number", thousands=","),
    numbers("a mark twice", ["1,,000"], None, "no finite number", thousands=","),
    numbers(
        "groups by blanks",
        ["1 234,5", "12\u00a0345", "1\u202f000"],
        [1234.5, 12345, 1000],
        decimal=",",
        thousands=" ",
    ),
    numbers("groups by blanks, not said", ["1 234"], None, "set reading.thousands to ' '"),
    numbers("groups by apostrophes", ["1'234.5", "1’000"], [1234.5, 1000], thousands="'"),
    numbers("groups by underscores", ["1_000"], None, "set reading.thousands to '_'"),
    numbers("marks that fit nothing", ["1,5", "2.5"], None, "mixes marks"),
    numbers("scientific", ["1e3", "2.5E-2", "-1e+2"], [1000, 0.025, -100]),
    numbers("scientific with a comma", ["1,5e3"], [1500], decimal=","),
    numbers("Fortran's exponent", ["1d3"], None, "no finite number"),
    numbers("a plus", ["+5", "+0.5"], [5, 0.5]),
    numbers("a typeset minus", ["−5", "−0.5"], [-5, -0.5]),
    numbers("a minus at the end", ["5-"], None, "punctuation at place 2"),
    numbers("brackets for minus", ["(5)"], None, "begins with punctuation"),
    numbers("no digit before the point", [".5", "5."], [0.5, 5]),
    numbers("percent", ["12%"], None, "punctuation at place 3"),
    numbers("a currency", ["€5"], None, "begins with a symbol"),
    numbers("a unit", ["12 kWh"], None, "a blank at place 3"),
    numbers("blanks around", [" 5 ", "\u00a06"], [5, 6]),
    numbers("leading zeros", ["007", "0.50"], [7, 0.5]),
    numbers("hexadecimal", ["0x10"], None, "no finite number"),
    numbers("Arabic digits", ["١٢"], None, "no finite number"),
    numbers("a time for a number", ["00:30"], None, "punctuation at place 3"),
    numbers("yes and no", ["true"], None, "begins with a letter"),
    numbers("empty cells", ["1", "", "3"], [1, NAN, 3]),
    numbers("NA, null, None, NaN", ["1", "NA", "null", "None", "NaN", "2"], [1, NAN, NAN, NAN, NAN, 2]),
    numbers("a dash", ["1", "-"], None, "missing_values"),
    numbers("a dash that is listed", ["1", "-", "2"], [1, NAN, 2], missing_values=("-",)),
    numbers("Excel's #N/A", ["1", "#N/A"], None, "missing_values"),
    numbers("-9999 that is listed", ["1", "-9999", "2"], [1, NAN, 2], missing_values=("-9999",)),
    numbers("-9999.0 where -9999 is listed", ["1", "-9999.0", "2"], [1, NAN, 2], missing_values=("-9999",)),
    numbers("-9999 listed as a number", ["1", "-9999", "2"], [1, NAN, 2], missing_values=(-9999,)),
    numbers(
        "-9999,0 with a decimal comma",
        ["1", "-9999,0", "2"],
        [1, NAN, 2],
        decimal=",",
        missing_values=("-9999",),
    ),
    numbers("-9999 that isn't listed", ["1", "-9999"], [1, -9999]),
    numbers("infinity", ["inf"], None, "no finite number", "missing_values"),
    numbers(
        "infinity that is listed", ["1", "inf", "-inf", "2"], [1, NAN, NAN, 2], missing_values=("inf", "-inf")
    ),
    numbers("1e999", ["1e999"], None, "no finite number"),
    numbers("more than fp32 holds", ["1e39"], None, "no finite number"),
    numbers(
        "a meter's register",
        [str(123456789 + k / 2) for k in range(5)],
        [123456789 + k / 2 for k in range(5)],
    ),
    numbers("cents of a large sum", ["1234567890123.45"], [1234567890123.45]),
    numbers("a zero byte", ["1\0"], None, "no finite number"),
]

STAMPS = [
    stamps("ISO", ["2024-01-01 00:00", "2024-01-01 01:00"], ["2024-01-01 00:00", "2024-01-01 01:00"]),
    stamps(
        "ISO with T and seconds",
        ["2024-01-01T00:00:00", "2024-01-01T00:00:01"],
        ["2024-01-01", "2024-01-01 00:00:01"],
    ),
    stamps("ISO basic", ["20240101", "20240102"], ["2024-01-01", "2024-01-02"]),
    stamps(
        "nanoseconds",
        ["2024-01-01T00:00:00.000000001", "2024-01-01T00:00:00.000000002"],
        ["2024-01-01T00:00:00.000000001", "2024-01-01T00:00:00.000000002"],
    ),
    stamps("one digit a month", ["2024-1-1", "2024-1-2"], ["2024-01-01", "2024-01-02"]),
    stamps("slashes, year first", ["2024/01/01", "2024/01/02"], ["2024-01-01", "2024-01-02"]),
    stamps(
        "days first, not said", ["13.01.2024 00:00", "14.01.2024 00:00"], None, "line 2", "'%d.%m.%Y %H:%M'"
    ),
    stamps(
        "days first, said", ["13.01.2024", "14.01.2024"], ["2024-01-13", "2024-01-14"], time_format="%d.%m.%Y"
    ),
    stamps("days or months first", ["01/02/2024", "02/02/2024"], None, "'%d/%m/%Y' or '%m/%d/%Y'"),
    stamps("days first for sure", ["01/02/2024", "13/02/2024"], None, "to '%d/%m/%Y', by", absent=("%m/%d",)),
    stamps("mornings and evenings", ["01/13/2024 01:00 PM"], None, "'%m/%d/%Y %I:%M %p'"),
    stamps("a month by name", ["01-Jan-2024", "02-Jan-2024"], None, "'%d-%b-%Y'"),
    stamps("two digits a year", ["13.01.24", "14.01.24"], None, "'%d.%m.%y'"),
    stamps("a format that fails", ["2024-01-13", "2024-01-14"], None, "'%Y-%m-%d'", time_format="%d.%m.%Y"),
    stamps("a bare year", ["2023", "2024"], None, "'%Y'"),
    stamps("a bare year, said", ["2023", "2024"], ["2023-01-01", "2024-01-01"], time_format="%Y"),
    stamps("now", ["now", "today"], None, "every row needs a stamp"),
    stamps("epoch seconds", ["1704067200", "1704070800"], None, "'seconds since 1970-01-01'"),
    stamps(
        "epoch seconds, said",
        ["1704067200", "1704070800"],
        ["2024-01-01 00:00", "2024-01-01 01:00"],
        time_format="seconds since 1970-01-01",
    ),
    stamps(
        "epoch seconds with a point",
        ["1704067200.0", "1704070800.0"],
        ["2024-01-01 00:00", "2024-01-01 01:00"],
        time_format="seconds since 1970-01-01",
    ),
    stamps("epoch milliseconds", ["1704067200000", "1704070800000"], None, "'milliseconds since 1970-01-01'"),
    stamps(
        "epoch milliseconds, said",
        ["1704067200000", "1704070800000"],
        ["2024-01-01 00:00", "2024-01-01 01:00"],
        time_format="milliseconds since 1970-01-01",
    ),
    stamps("epoch microseconds", ["1704067200000000"], None, "'microseconds since 1970-01-01'"),
    stamps(
        "epoch nanoseconds, said",
        ["1704067200000000001", "1704067200000000002"],
        ["2024-01-01T00:00:00.000000001", "2024-01-01T00:00:00.000000002"],
        time_format="nanoseconds since 1970-01-01",
    ),
    stamps("Excel's days", ["45292.000000", "45292.041667"], None, "'days since 1899-12-30'"),
    stamps(
        "Excel's days, said",
        ["45292.000000", "45292.041667", "45292.083333"],
        ["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00"],
        time_format="days since 1899-12-30",
    ),
    stamps("step numbers", ["0", "1", "2"], None, "'hours since 2024-01-01'"),
    stamps(
        "step numbers, said",
        ["0", "1", "2"],
        ["2024-01-01 00:00", "2024-01-01 00:15", "2024-01-01 00:30"],
        time_format="15 minutes since 2024-01-01",
    ),
    stamps(
        "step numbers like years",
        ["1999", "2000"],
        ["2024-03-24 07:00", "2024-03-24 08:00"],
        time_format="hours since 2024-01-01",
    ),
    stamps("a word among numbers", ["0", "x"], None, "line 3", time_format="hours since 2024-01-01"),
    stamps(
        "numbers beyond all years",
        ["99999999999"],
        None,
        "outside of 1678 to 2261",
        time_format="days since 1970-01-01",
    ),
    stamps(
        "24:00, German",
        ["31.12.2023 23:45", "31.12.2023 24:00"],
        ["2023-12-31 23:45", "2024-01-01 00:00"],
        time_format="%d.%m.%Y %H:%M",
    ),
    stamps("24:00, ISO", ["2024-02-28 23:00", "2024-02-28 24:00"], ["2024-02-28 23:00", "2024-02-29 00:00"]),
    stamps(
        "24:00:00 with T",
        ["2024-02-28T23:00:00", "2024-02-28T24:00:00"],
        ["2024-02-28 23:00", "2024-02-29 00:00"],
    ),
    stamps(
        "2400 in one",
        ["202401012300", "202401012400"],
        ["2024-01-01 23:00", "2024-01-02 00:00"],
        time_format="%Y%m%d%H%M",
    ),
    stamps("24:00:30", ["2024-01-01 23:00:00", "2024-01-01 24:00:30"], None, "line 3"),
    stamps("25:00", ["2024-01-01 23:00", "2024-01-01 25:00"], None, "line 3"),
    stamps("a 30 February", ["2024-02-29", "2024-02-30"], None, "line 3"),
    stamps("the year 9999", ["2024-01-01", "9999-12-31"], None, "t.csv, line 3, column 'time'", "year 9999"),
    stamps("the year 1", ["0001-01-01", "2024-01-01"], None, "line 2", "year 0001"),
    stamps("9999 by a format", ["01.01.2024", "31.12.9999"], None, "line 3", "9999", time_format="%d.%m.%Y"),
    stamps("an empty stamp", ["2024-01-01", ""], None, "line 3", "an empty text", absent=("time_format",)),
    stamps(
        "offsets",
        ["2024-01-01T01:00+01:00", "2024-01-01T02:00+01:00"],
        ["2024-01-01 00:00", "2024-01-01 01:00"],
    ),
    stamps(
        "two offsets in one column",
        ["2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00"],
        ["2024-03-31 00:00", "2024-03-31 01:00"],
    ),
    stamps(
        "an offset here and none there",
        ["2024-01-01 00:00Z", "2024-01-01 01:00"],
        None,
        "line 3",
        "line 2",
        "reading.time_zone",
    ),
    stamps(
        "the same with a zone",
        ["2024-01-01 00:00Z", "2024-01-01 02:00"],
        ["2024-01-01 00:00", "2024-01-01 01:00"],
        time_zone="Europe/Berlin",
    ),
    stamps("a zone by its letters", ["2024-01-01 00:00 CET"], None, "line 2"),
    stamps(
        "an hour that the zone has twice",
        ["2024-10-27 01:00", "2024-10-27 02:00"],
        None,
        "twice or not at all",
        time_zone="Europe/Berlin",
    ),
    stamps(
        "between the steps",
        ["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00", "2024-01-01 02:30"],
        None,
        "between the steps",
    ),
]

NFC, NFD = unicodedata.normalize("NFC", "Müller"), unicodedata.normalize("NFD", "Müller")
IDS = [
    of_ids("texts", ["b", "a"], ["a", "b"]),
    of_ids("capitals", ["a", "A"], None, "differ only by", "'folded'"),
    of_ids("capitals, said to be two", ["a", "A"], ["A", "a"], ids="text"),
    of_ids("capitals, said to be one", ["a", "A"], ["a"], ids="folded"),
    of_ids("lost zeros", ["00101", "101"], None, "line 2", "line 3", "'number'"),
    of_ids("lost zeros, said to be one", ["00101", "101"], ["00101"], ids="number"),
    of_ids("lost zeros, said to be two", ["00101", "101"], ["00101", "101"], ids="text"),
    of_ids("a fraction of zeros", ["101", "101.0"], None, "'number'"),
    of_ids("a fraction of zeros, one", ["101", "101.0", "0101.00"], ["101"], ids="number"),
    of_ids("no number where one is due", ["101", "x"], None, "line 3", "no whole number", ids="number"),
    of_ids("Unicode's two forms", [NFC, NFD], None, "'folded'"),
    of_ids("Unicode's two forms, one", [NFC, NFD], [NFC], ids="folded"),
    of_ids("full width", ["１０１", "101"], None, "differ only by"),
    of_ids("blank at the end", ["a", "a "], None, "differ only by"),
    of_ids("blank at the start", ["a", " a"], None, "differ only by"),
    of_ids("no-break blank", ["a b", "a\u00a0b"], None, "differ only by"),
    of_ids("zero-width blank", ["a", "a\u200b"], None, "differ only by"),
    of_ids("a byte order mark inside", ["a", "\ufeffa"], None, "differ only by"),
    of_ids("blanks, one", ["a b", "a\u00a0b", " a b "], ["a b"], ids="folded"),
    of_ids("zeros of texts", ["m01", "m1"], ["m01", "m1"]),
    of_ids("empty", ["a", ""], None, "line 3", "is empty", "missing_ids"),
    of_ids("blank alone", ["a", "  "], None, "line 3", "is empty"),
    of_ids("None", ["a", "None"], None, "line 3", "a missing value"),
    of_ids("nan", ["a", "nan"], None, "line 3", "a missing value"),
    of_ids("nobody, said to be left out", ["a", "", "NULL", "b"], ["a", "b"], missing_ids="drop"),
    of_ids("Namibia", ["NA", "DE"], ["DE", "NA"], missing_values=("",)),
    file(
        "ids in two files",
        {"1.csv": rows(f"00101,{HOURS[0]},1"), "2.csv": rows(f"101,{HOURS[1]},2")},
        None,
        "1.csv, line 2",
        "2.csv, line 2",
        frequency="h",
    ),
    file(
        "numbers here and text there",
        {
            "1.parquet": pa.table({"id": [101], "time": [datetime(2024, 1, 1)], "y": [1.0]}),
            "2.parquet": pa.table({"id": ["101"], "time": [datetime(2024, 1, 1, 1)], "y": [2.0]}),
        },
        None,
        "1.parquet",
        "2.parquet",
        "reading.ids",
        frequency="h",
    ),
    file(
        "the same, one customer",
        {
            "1.parquet": pa.table({"id": [101], "time": [datetime(2024, 1, 1)], "y": [1.0]}),
            "2.parquet": pa.table({"id": ["101"], "time": [datetime(2024, 1, 1, 1)], "y": [2.0]}),
        },
        {"101": [1.0, 2.0]},
        frequency="h",
        ids="number",
    ),
    file(
        "whole numbers and fractions of zeros",
        {
            "1.parquet": pa.table({"id": [101], "time": [datetime(2024, 1, 1)], "y": [1.0]}),
            "2.parquet": pa.table({"id": [101.0], "time": [datetime(2024, 1, 1, 1)], "y": [2.0]}),
        },
        None,
        "'number'",
        frequency="h",
    ),
    file(
        "one id that joins two rows of a time",
        rows(f"01,{HOURS[0]},1", f"1,{HOURS[0]},2"),
        None,
        "second reading",
        frequency="h",
        ids="number",
    ),
]

PARQUET = [
    typed("whole numbers as ids", {"7": THREE}, id=pa.array([7, 7, 7]), report={"id_type": "int64"}),
    typed("fractions of zeros as ids", {"7.0": THREE}, id=pa.array([7.0, 7.0, 7.0])),
    typed("a fraction as an id", None, "may have rounded", id=pa.array([7.5, 7.0, 7.0])),
    typed("large fp32 as ids", None, "may have rounded", id=pa.array([2.0**25] * 3, pa.float32())),
    typed("no id", None, "row 2", "is empty", id=pa.array(["a", None, "a"])),
    typed("NaN as an id", None, "row 2", id=pa.array([1.0, NAN, 1.0])),
    typed(
        "no id, left out",
        {"a": [0.0, NAN, 2.0]},
        id=pa.array(["a", None, "a"]),
        missing_ids="drop",
        frequency="h",
        report={"rows_of_nobody": 1},
    ),
    typed("bytes as ids", None, "binary", "as text", id=pa.array([b"\xff", b"\xff", b"\xff"])),
    typed("lists as ids", None, "ids must be text", id=pa.array([["a"], ["a"], ["a"]])),
    typed("a dictionary of ids", {"a": THREE}, id=pa.array(["a", "a", "a"]).dictionary_encode()),
    typed("views as ids", {"a": THREE}, id=pa.array(["a", "a", "a"], pa.string_view())),
    typed(
        "-9999 in whole numbers", {"a": [1.0, NAN, 2.0]}, y=pa.array([1, -9999, 2]), missing_values=("-9999",)
    ),
    typed(
        "-9999 in fractions",
        {"a": [1.0, NAN, 2.0]},
        y=pa.array([1.0, -9999.0, 2.0]),
        missing_values=("-9999",),
    ),
    typed(
        "-9999.9 in fp32",
        {"a": [1.0, NAN, 2.0]},
        y=pa.array([1.0, -9999.9, 2.0], pa.float32()),
        missing_values=("-9999.9",),
    ),
    typed("infinity", None, "row 2", "missing_values", y=pa.array([1.0, np.inf, 2.0])),
    typed(
        "infinity that is listed",
        {"a": [1.0, NAN, NAN]},
        y=pa.array([1.0, np.inf, -np.inf]),
        missing_values=("inf", "-inf"),
    ),
    typed("null and NaN", {"a": [1.0, NAN, NAN]}, y=pa.array([1.0, None, NAN], from_pandas=False)),
    typed("yes and no", {"a": [1.0, 0.0, 1.0]}, y=pa.array([True, False, True])),
    typed(
        "decimals", {"a": [1.25, 2.5, 3.0]}, y=pa.array([Decimal("1.25"), Decimal("2.50"), Decimal("3.00")])
    ),
    typed(
        "large whole numbers",
        {"a": [1.7e9, 1.7e9 + 1, 1.7e9 + 2]},
        y=pa.array([1_700_000_000 + k for k in range(3)]),
        report={"rounded": 2, "rounded_most": 2.0},
    ),
    typed("numbers as text", {"a": [1.0, 2.5, NAN]}, y=pa.array(["1", "2.5", "NA"])),
    typed("lists for numbers", None, "no numbers", y=pa.array([[1.0], [1.0], [1.0]])),
    typed("stamps for numbers", None, "no numbers", y=pa.array([datetime(2024, 1, 1)] * 3)),
    *(
        typed(
            f"stamps in {unit}",
            {"a": THREE},
            time=pa.array([datetime(2024, 1, 1, hour) for hour in range(3)], pa.timestamp(unit)),
            report={"first": "2024-01-01 00:00:00", "last": "2024-01-01 02:00:00"},
        )
        for unit in ("s", "ms", "us", "ns")
    ),
    *(
        typed(
            f"the year 9999 in {unit}",
            None,
            "row 3, column 'time'",
            "year 9999",
            time=pa.array(
                [datetime(2024, 1, 1), datetime(2024, 1, 2), datetime(9999, 12, 31)], pa.timestamp(unit)
            ),
        )
        for unit in ("s", "ms", "us")
    ),
    typed(
        "the year 1",
        None,
        "row 1",
        "year 0001",
        time=pa.array([datetime(1, 1, 1), datetime(2024, 1, 2), datetime(2024, 1, 3)], pa.timestamp("us")),
    ),
    typed(
        "dates",
        {"a": THREE},
        time=pa.array([date(2024, 1, day) for day in (1, 2, 3)], pa.date32()),
        report={"frequency": "1 days 00:00:00"},
    ),
    typed(
        "dates in ms",
        {"a": THREE},
        time=pa.array([date(2024, 1, day) for day in (1, 2, 3)], pa.date64()),
        report={"frequency": "1 days 00:00:00"},
    ),
    typed(
        "a date of 9999",
        None,
        "row 3",
        "year 9999",
        time=pa.array([date(2024, 1, 1), date(2024, 1, 2), date(9999, 12, 31)]),
    ),
    typed(
        "a missing stamp",
        None,
        "row 2",
        "nothing",
        time=pa.array([datetime(2024, 1, 1), None, datetime(2024, 1, 1, 2)]),
    ),
    typed(
        "stamps with a zone",
        {"a": THREE},
        time=pa.array(
            [datetime(2024, 1, 1, hour) for hour in range(3)], pa.timestamp("us", tz="Europe/Berlin")
        ),
    ),
    typed(
        "epoch seconds",
        None,
        "'seconds since 1970-01-01'",
        time=pa.array([1704067200 + 3600 * k for k in range(3)]),
    ),
    typed(
        "epoch seconds, said",
        {"a": THREE},
        time=pa.array([1704067200 + 3600 * k for k in range(3)]),
        time_format="seconds since 1970-01-01",
        report={"first": "2024-01-01 00:00:00"},
    ),
    typed(
        "days as numbers 20240101",
        {"a": THREE},
        time=pa.array([20240101, 20240102, 20240103]),
        time_format="%Y%m%d",
        report={"first": "2024-01-01 00:00:00"},
    ),
    typed(
        "durations for stamps", None, "stamps must be", time=pa.array([timedelta(hours=k) for k in range(3)])
    ),
]

FILES = [
    file("plain", PLAIN, {"a": THREE}),
    file("Windows' line ends", PLAIN.replace("\n", "\r\n"), {"a": THREE}),
    file("an old Mac's line ends", PLAIN.replace("\n", "\r"), {"a": THREE}),
    file("no line end at the end", PLAIN.rstrip(), {"a": THREE}),
    file("empty lines", PLAIN.replace("\n", "\n\n"), {"a": THREE}),
    file("a byte order mark", b"\xef\xbb\xbf" + PLAIN.encode(), {"a": THREE}),
    file("quotes", PLAIN.replace("a,", '"a",'), {"a": THREE}),
    file("a quoted delimiter", PLAIN.replace("a,", '"a,b",'), {"a,b": THREE}),
    file("doubled quotes", PLAIN.replace("a,", '"a""b",'), {'a"b': THREE}),
    file(
        "a quote that is not closed",
        PLAIN.replace("a,2024-01-01 01", '"a,2024-01-01 01'),
        None,
        "line 3",
        "not closed",
    ),
    file(
        "a line break in a cell",
        rows(f'"a\nb",{HOURS[0]},1', f"a,{HOURS[1]},2"),
        None,
        "line 2",
        "line breaks",
    ),
    file(
        "Latin-1",
        PLAIN.replace("a,", "ä,").encode("latin-1"),
        None,
        "t.csv, line 2",
        "reading.encoding",
        "'latin-1'",
    ),
    file("Latin-1, said", PLAIN.replace("a,", "ä,").encode("latin-1"), {"ä": THREE}, encoding="latin-1"),
    file(
        "Latin-1 in the header",
        PLAIN.replace("y\n", "y,größe\n", 1).replace("00,", "00,1,").encode("latin-1"),
        None,
        "t.csv, line 1",
        "reading.encoding",
    ),
    file(
        "Latin-1 read as cp1252", PLAIN.replace("a,", "€,").encode("cp1252"), {"€": THREE}, encoding="cp1252"
    ),
    file("UTF-16", PLAIN.encode("utf-16"), None, "line 1", "'utf-16'"),
    file("UTF-16, said", PLAIN.encode("utf-16"), {"a": THREE}, encoding="utf-16"),
    file("UTF-16 without its mark", PLAIN.encode("utf-16-le"), None, "line 1", "zero byte", "'utf-16-le'"),
    file("UTF-16 without its mark, said", PLAIN.encode("utf-16-le"), {"a": THREE}, encoding="utf-16-le"),
    file("packed by gzip", gzip.compress(PLAIN.encode()), {"a": THREE}, as_name="t.csv.gz"),
    file("gzip, cut off", gzip.compress(PLAIN.encode())[:-12], None, "can't be unpacked", as_name="t.csv.gz"),
    file("a zip", b"PK\x03\x04", None, "unpack it", as_name="t.zip"),
    file("a spreadsheet", b"PK\x03\x04", None, "save the sheet as CSV", as_name="t.xlsx"),
    file("tabs named .tsv", PLAIN.replace(",", "\t"), None, "reading.delimiter", as_name="t.tsv"),
    file("tabs", PLAIN.replace(",", "\t"), {"a": THREE}, delimiter="\t"),
    file("another delimiter", PLAIN.replace(",", ";"), None, "no column 'id'", "reading.delimiter"),
    file("a line too short", PLAIN + "a,2024-01-01 03:00\n", None, "line 5 has 2 cells"),
    file("a line too long", PLAIN + "a,2024-01-01 03:00,1,2\n", None, "line 5 has 4 cells"),
    file("one name for two columns", PLAIN.replace("id,time,y", "id,time,time"), None, "columns 2 and 3"),
    file("names with blanks", PLAIN.replace("id,time,y", "id, time,y"), None, "' time' differs in blanks"),
    file(
        "names in capitals",
        PLAIN.replace("id,time,y", "ID,time,y"),
        None,
        "'ID' differs in blanks or capitals",
    ),
    file("comments above", "# a,b\n# c\n" + PLAIN, None, "line 2 has 1 cells", "reading.skip_lines"),
    file("comments above, said", "# a,b\n# c\n" + PLAIN, {"a": THREE}, skip_lines=2),
    file(
        "a bad cell below comments",
        "# c\n" + PLAIN.replace(",2\n", ",x\n"),
        None,
        "line 5, column 'y'",
        skip_lines=1,
    ),
    file("a second line of units", PLAIN.replace("y\n", "y\n,,kWh\n", 1), None, "line 2"),
    file("a total at the end", PLAIN + "total,,3\n", None, "line 5, column 'time'"),
    file("the header again", PLAIN + "id,time,y\n", None, "line 5, column 'time'"),
    file(
        "columns in another order",
        {"1.csv": rows(f"a,{HOURS[0]},1"), "2.csv": rows(f"2,a,{HOURS[1]}", head="y,id,time")},
        {"a": [1.0, 2.0]},
        frequency="h",
    ),
    file(
        "a file without a column",
        {"1.csv": rows(f"a,{HOURS[0]},1"), "2.csv": rows(f"a,{HOURS[1]}", head="id,time")},
        None,
        "2.csv has no column 'y'",
    ),
    file("hidden files beside", {"1.csv": PLAIN, "._1.csv": b"\x00\x05", "notes.txt": "x"}, {"a": THREE}),
    file("an empty file", "", None, "is empty"),
    file("names alone", "id,time,y\n", None, "no customer has two stamps"),
    file(
        "CSV and Parquet",
        {
            "1.csv": rows(f"a,{HOURS[0]},1"),
            "2.parquet": pa.table({"id": ["a"], "time": [datetime(2024, 1, 1, 1)], "y": [2.0]}),
        },
        {"a": [1.0, 2.0]},
        frequency="h",
    ),
    file(
        "one file with zones, one without",
        {"1.csv": rows(f"a,{HOURS[0]}Z,1"), "2.csv": rows(f"a,{HOURS[1]},2")},
        None,
        "1.csv, line 2",
        "2.csv, line 2",
        "reading.time_zone",
        frequency="h",
    ),
    file(
        "the last known covariate",
        in_a_file(id=["a"] * 5, time=HOURS[:5], y=list("01234"), t=["", "5", "", "", "10"]),
        {"a": [0.0, 1.0, 2.0, 3.0, 4.0]},
        layout=Long(
            id_column="id",
            time_column="time",
            target_columns=["y"],
            covariates=Covariates(numeric={"t": (0, 10)}),
        ),
        report={"missing_covariates": 3},
    ),
    file(
        "rows of the future",
        in_a_file(id=["a"] * 4, time=HOURS[:4], y=["0", "1", "", ""], t=list("1234")),
        {"a": [0.0, 1.0, NAN, NAN]},
        layout=Long(
            id_column="id",
            time_column="time",
            target_columns=["y"],
            covariates=Covariates(numeric={"t": (0, 10)}),
        ),
        report={"future_rows": 2, "future_customers": 1},
    ),
    file(
        "rows before the first reading",
        in_a_file(id=["a"] * 4, time=HOURS[:4], y=["", "1", "2", "3"]),
        {"a": [NAN, 1.0, 2.0, 3.0]},
        report={"rows_before": 1},
    ),
    file(
        "a gap",
        in_a_file(id=["a"] * 3, time=[HOURS[0], HOURS[1], HOURS[5]], y=list("012")),
        {"a": [0.0, 1.0, NAN, NAN, NAN, 2.0]},
        report={"gap_steps": 3, "longest_gap": 3},
    ),
    file("a row twice", PLAIN + f"a,{HOURS[1]},9\n", None, "line 5", "second reading", "reading.duplicates"),
    file(
        "rounding in windows",
        in_a_file(id=["a"] * 3, time=HOURS[:3], y=["123456789.5", "123456790", "0.1"]),
        {"a": [123456789.5, 123456790.0, 0.1]},
        report={"rounded": 2, "readings": 3},
    ),
]

WIDES = [
    file("two customers", in_a_file(**WIDE_ROWS), {"a": [5, 6, 9, 2], "b": [1, 3, 2, 8]}, layout=WIDE),
    file(
        "a saved index",
        in_a_file(**{"": list("0123"), **WIDE_ROWS}),
        None,
        "without a name",
        "ignored_columns",
        layout=WIDE,
    ),
    file(
        "a saved index, said",
        in_a_file(**{"": list("0123"), **WIDE_ROWS}),
        {"a": [5, 6, 9, 2], "b": [1, 3, 2, 8]},
        layout=Wide(time_column="time", ignored_columns=[""]),
    ),
    file(
        "a saved index, read and saved again",
        in_a_file(**{"Unnamed: 0": list("7070"), **WIDE_ROWS}),
        None,
        "without a name",
        layout=WIDE,
    ),
    file(
        "row numbers", in_a_file(**WIDE_ROWS, r=list("0123")), None, "number 3 counts its rows", layout=WIDE
    ),
    file("row numbers from 1", in_a_file(**WIDE_ROWS, r=list("1234")), None, "counts its rows", layout=WIDE),
    file(
        "a customer called index",
        in_a_file(**WIDE_ROWS, index=list("4711")),
        {"a": [5, 6, 9, 2], "b": [1, 3, 2, 8], "index": [4, 7, 1, 1]},
        layout=WIDE,
    ),
    file(
        "a total",
        in_a_file(**WIDE_ROWS, x=["6", "9", "11", "10"]),
        None,
        "is the sum of the others",
        layout=WIDE,
    ),
    file(
        "a total and row numbers",
        in_a_file(**WIDE_ROWS, x=["6", "9", "11", "10"], r=list("0123")),
        None,
        "counts its rows",
        layout=WIDE,
    ),
    file(
        "a total beside ignored row numbers",
        in_a_file(**WIDE_ROWS, x=["6", "9", "11", "10"], r=list("0123")),
        None,
        "is the sum",
        layout=Wide(time_column="time", ignored_columns=["r"]),
    ),
    file(
        "a mean",
        in_a_file(**WIDE_ROWS, m=["3", "4.5", "5.5", "5"]),
        None,
        "is the mean of the others",
        layout=WIDE,
    ),
    file(
        "a customer called total",
        in_a_file(**WIDE_ROWS, total=["6", "9", "11", "11"]),
        {"a": [5, 6, 9, 2], "b": [1, 3, 2, 8], "total": [6, 9, 11, 11]},
        layout=WIDE,
    ),
    file(
        "customers that are stated",
        in_a_file(**WIDE_ROWS, r=list("0123")),
        {"b": [1, 3, 2, 8], "r": [0, 1, 2, 3]},
        layout=Wide(time_column="time", id_columns=["b", "r"]),
    ),
    file(
        "names that lost zeros",
        in_a_file(**{"time": HOURS[:3], "01": list("529"), "1": list("734")}),
        None,
        "column 1",
        "column 2",
        layout=WIDE,
    ),
    file(
        "a column of words",
        in_a_file(**WIDE_ROWS, region=["north"] * 4),
        None,
        "begins with a letter",
        layout=WIDE,
    ),
    file("nothing but stamps", in_a_file(time=HOURS[:3]), None, "no column of a customer", layout=WIDE),
    file(
        "thousands in one customer's column",
        "time;a;b\n" + "".join(f"{stamp};0,5;1,{n}00\n" for n, stamp in enumerate(HOURS[:3])),
        None,
        "customer number 2",
        "reading.thousands",
        layout=WIDE,
        delimiter=";",
        decimal=",",
    ),
]

FREQUENCIES = [
    steps("days", [0, 1, 2, 3], "1 days 00:00:00"),
    steps("28 days", [0, 28, 56, 84, 112], "28 days 00:00:00"),
    steps("29 days", [0, 29, 58, 87], "29 days 00:00:00"),
    steps("30 days", [0, 30, 60, 90, 120], "30 days 00:00:00"),
    steps("31 days", [0, 31, 62, 93, 124], "31 days 00:00:00"),
    steps("two stamps a month apart", [0, 31], "31 days 00:00:00"),
    steps("28 days that begin with two months", [0, 28, 56], "28 days 00:00:00", start="2023-02-01"),
    steps("month starts", month_starts(8), "1 month(s)", start="2023-01-01"),
    steps("the 15th of each month", month_starts(8, day=15), "1 month(s)", start="2023-01-01"),
    steps("quarters", month_starts(8, months=3), "3 month(s)", start="2023-01-01"),
    steps("years", month_starts(4, months=12), "12 month(s)", start="2023-01-01"),
    steps("91 days", [0, 91, 182, 273, 364], "91 days 00:00:00"),
    steps("365 days over a leap year", [0, 365, 730, 1095], "365 days 00:00:00"),
    steps("28 days said to be months", [0, 28, 56], None, "the same month", "'28D'", frequency="MS"),
]

KINDS = [*NUMBERS, *STAMPS, *IDS, *PARQUET, *FILES, *WIDES, *FREQUENCIES]


def test_there_are_many_kinds_and_each_has_a_name_of_its_own():
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) >= 150


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_read_right_or_refused_with_a_way(tmp_path, monkeypatch, kind):
    monkeypatch.delenv("LIGHTNING_DP_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    if kind.words:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are below
            convert_files(tmp_path, kind.files, layout=kind.layout, **kind.reading)
        sentence = str(error.value)
        for word in kind.words:
            assert word in sentence
        for word in kind.absent:
            assert word not in sentence
        assert "\n" not in sentence
        return
    found = convert_files(tmp_path, kind.files, layout=kind.layout, **kind.reading)
    if kind.values is not None:
        assert sorted(found.values) == sorted(kind.values)
        for name, expected in kind.values.items():
            if expected is not None:
                np.testing.assert_array_equal(found.values[name], np.array(expected, dtype=np.float64))
    if kind.stamps is not None:
        assert found.stamps == [pd.Timestamp(stamp) for stamp in kind.stamps]
    for name, expected in kind.report.items():
        assert getattr(found.report, name) == expected, name
    assert kind.values or kind.stamps or kind.report


@pytest.mark.parametrize(
    ("borders", "words"),
    [
        ({"test_from": "2024-02-03"}, None),
        ({"test_from": "2024-02-03 12:00"}, None),
        ({"test_from": "2024-02-03T12:00Z"}, None),
        ({"test_from": "03.02.2024"}, "ISO 8601"),
        ({"test_from": "02/03/2024"}, "ISO 8601"),
        ({"test_from": "3 February 2024"}, "ISO 8601"),
        ({"test_from": "20240203"}, "ISO 8601"),
        ({"test_from": "2024"}, "ISO 8601"),
        ({"test_from": "now"}, "ISO 8601"),
        ({"test_from": "2024-02-30"}, "ISO 8601"),
        ({"val_from": "2024-01-02", "test_from": "2024-01-02T06:00Z"}, "write both alike"),
    ],
)
def test_a_border_is_iso_or_refused(borders, words):
    if words is None:
        assert ByTime(**borders).test_from == pd.Timestamp(borders["test_from"])
        return
    with pytest.raises(ValueError, match=words):
        ByTime(**borders)


def test_a_packed_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_dp.archives._SUSPICIOUS_BYTES", 1 << 20)
    packed = gzip.compress(b"id,time,y\n" + b"\n" * (12 << 20))
    with pytest.raises(ValueError, match=r"t\.csv\.gz"):
        convert_files(tmp_path, {"t.csv.gz": packed}, layout=LONG)
