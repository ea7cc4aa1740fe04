"""Hostile tables: nothing of a cell is quoted, whoever wrote the sentence."""

import io
import os
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
from place import SECRET, Kind, Place, refused

from lightning_dp.timeseries.data.own_table.files import find_files
from lightning_dp.timeseries.data.own_table.layout import Covariates, Long, Wide
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.stamps import read_stamps

LONG = Long(
    id_column="meter",
    time_column="time",
    target_columns=["kwh"],
    covariates=Covariates(categorical={"kind": ["home", "farm"]}),
)


def open_table(place: Place, content: bytes, *, layout=LONG, name: str = "load.csv", **reading) -> str:
    (place.folder / "data").mkdir(exist_ok=True)
    (place.folder / "data" / name).write_bytes(content)
    return refused(lambda: read_all(place, layout, Reading(**reading)))


def read_all(place: Place, layout, reading: Reading) -> None:
    for file in find_files(str(place.folder / "data"), delimiter=reading.delimiter):
        for batch in layout.read(file, reading=reading):
            read_stamps(batch.rows, layout.time_column, reading=reading, wall_clock=False)


def rows(*lines: str, head: str = "meter,time,kwh,kind") -> bytes:
    return "\n".join([head, "a,2024-01-01 00:00:00,1,home", *lines, ""]).encode()


def table(content: bytes, **options) -> Callable[[Place], str]:
    return lambda place: open_table(place, content, **options)


def parquet(columns: dict[str, list], *, cut: int | None = None) -> Callable[[Place], str]:
    packed = io.BytesIO()
    pq.write_table(pa.table(columns), packed)
    return table(packed.getvalue()[:cut], name="load.parquet")


def a_link(place: Place) -> str:
    (place.folder / "data").mkdir()
    (place.folder / "private.csv").write_bytes(rows())
    os.symlink(place.folder / "private.csv", place.folder / "data" / "load.csv")
    return refused(lambda: read_all(place, LONG, Reading()))


WHOLE = {"meter": ["a"], "time": ["2024-01-01"], "kwh": [1.0], "kind": ["home"]}
KINDS = [
    Kind("table", "words for a number", table(rows(f"a,2024-01-02,{SECRET},home")), "begins with a letter"),
    Kind("table", "number with a unit", table(rows("a,2024-01-02,12 kWh,home")), "has a blank at place 3"),
    Kind("table", "number without end", table(rows("a,2024-01-02,1e999,home")), "no finite number"),
    Kind("table", "words for a stamp", table(rows(f"a,{SECRET},1,home")), "every row needs a stamp"),
    Kind("table", "stamp in another form", table(rows("a,13.01.2024,1,home")), "every row needs a stamp"),
    Kind("table", "some stamps with an offset", table(rows("a,2024-01-02 00:00:00Z,1,home")), "offset"),
    Kind("table", "category that is not listed", table(rows(f"a,2024-01-02,1,{SECRET}")), "not among the 2"),
    Kind("table", "nobody's row", table(rows(",2024-01-02,1,home")), "is empty"),
    Kind("table", "cells too many", table(rows(f"a,2024-01-02,1,home,{SECRET}")), "has 5 cells"),
    Kind(
        "table",
        "private line where the header is due",
        table(rows(head=f"{SECRET},b,c,d")),
        "no column 'meter'",
    ),
    Kind(
        "table",
        "two columns of one name",
        table(rows(head=f"{SECRET},{SECRET},kwh,kind")),
        "one name for its columns 1 and 2",
    ),
    Kind("table", "empty file", table(b""), "is empty"),
    Kind("table", "no UTF-8", table(rows().replace(b"home", b"\xff\xfe")), "UTF-8"),
    Kind("table", "zeros in a cell", table(rows("a,2024-01-02,\0\0,home")), "no finite number"),
    Kind(
        "table",
        "customer's column of words",
        table(f"time,{SECRET}\n2024-01-01,x\n".encode(), layout=Wide(time_column="time")),
        "column of customer number 1",
    ),
    Kind("table", "no Parquet", table(b"nothing", name="load.parquet"), "can't be read as Parquet"),
    Kind("table", "Parquet cut off", parquet(WHOLE, cut=200), "can't be read as Parquet"),
    Kind(
        "table", "Parquet with words for numbers", parquet(WHOLE | {"kwh": [SECRET]}), "begins with a letter"
    ),
    Kind("table", "Parquet with lists for numbers", parquet(WHOLE | {"kwh": [[1.0]]}), "no numbers"),
    Kind("table", "nothing of its kind", table(b"x", name="load.xlsx"), "names no .csv or .parquet"),
    Kind("table", "link to a file elsewhere", a_link, "is a link that leads out of"),
]
