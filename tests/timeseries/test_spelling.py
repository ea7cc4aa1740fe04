"""Ids and stamps of predictions: those of the input, letter by letter and type by type."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from lightning_dp.timeseries.data.own_table.layout import Long, Wide
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.split import ByTime
from lightning_dp.timeseries.data.table import Table

HOURS = pd.date_range("2024-03-29", periods=96, freq="h")
UTC = HOURS.tz_localize("UTC")
DAYS = pd.date_range("2024-01-01", periods=96, freq="D")
NEXT = 4  # steps that are asked for past the end


def whole(tmp_path: Path, columns: dict, *, reading: dict, layout=None, csv: bool):
    """The series of a table and what it writes for its last rows and those that follow."""
    path = tmp_path / ("t.csv" if csv else "t.parquet")
    if csv:
        pd.DataFrame(columns).to_csv(path, index=False)
    else:
        parquet.write_table(pa.table(columns), path)
    data = Table(
        str(path),
        name="spelt",
        layout=layout or Long(id_column="id", time_column="at", target_columns=["y"]),
        reading=Reading(**reading),
        context_length=3,
        horizon=3,
        split=ByTime(test_from="2024-01-02"),
        cache_dir=str(tmp_path / "cache"),
    )
    return data.whole_series()


def german(stamps) -> list[str]:
    return [f"{one.day}.{one.month}.{one.year} {one.hour}:{one.minute:02d}" for one in stamps]


BERLIN = pd.date_range("2024-03-29", periods=96, freq="h", tz="Europe/Berlin")
MONTHS = pd.date_range("2020-01-31", periods=60, freq="ME")
# Cells of the input, of which the last few are kept from the table, and how they are read.
TEXTS = {
    "seconds": (list(HOURS.strftime("%Y-%m-%d %H:%M:%S")), {"frequency": "h"}),
    "T and minutes": (list(HOURS.strftime("%Y-%m-%dT%H:%M")), {"frequency": "h"}),
    "milliseconds and Z": ([f"{one:%Y-%m-%dT%H:%M:%S}.000Z" for one in HOURS], {"frequency": "h"}),
    "an offset": ([f"{one:%Y-%m-%d %H:%M}+01:00" for one in HOURS], {"frequency": "h"}),
    "offsets of a zone": (
        [one.isoformat() for one in BERLIN],
        {"frequency": "h", "time_zone": "Europe/Berlin"},
    ),
    "wall clock of a zone": (
        list(BERLIN.strftime("%Y-%m-%d %H:%M:%S")),
        {"frequency": "h", "time_zone": "Europe/Berlin"},
    ),
    "days": (list(DAYS.strftime("%Y-%m-%d")), {"frequency": "D"}),
    "compact days": (list(DAYS.strftime("%Y%m%d")), {"frequency": "D"}),
    "German, without zeros": (german(HOURS), {"frequency": "h", "time_format": "%d.%m.%Y %H:%M"}),
    "twelve hours": (
        list(HOURS.strftime("%m/%d/%Y %I:%M %p")),
        {"frequency": "h", "time_format": "%m/%d/%Y %I:%M %p"},
    ),
    "ends of months": (list(MONTHS.strftime("%Y-%m-%d")), {"frequency": "MS"}),
    "the 15th": (
        [f"{one:%Y-%m}-15" for one in pd.date_range("2020-01-01", periods=60, freq="MS")],
        {"frequency": "MS"},
    ),
    "without zeros": (
        [f"{one.year}-{one.month}-{one.day} {one.hour}:00" for one in HOURS],
        {"frequency": "h"},
    ),
    "compact": (list(HOURS.strftime("%Y%m%dT%H%M")), {"frequency": "h"}),
    "24:00": (
        [
            f"{one - pd.Timedelta(days=1):%Y-%m-%d} 24:00" if one.hour == 0 else f"{one:%Y-%m-%d %H:%M}"
            for one in HOURS
        ],
        {"frequency": "h"},
    ),
    "seconds since 1970": (
        [str(one) for one in HOURS.as_unit("s").asi8],
        {"frequency": "h", "time_format": "seconds since 1970-01-01"},
    ),
    "a spreadsheet's days": (
        [f"{(one - pd.Timestamp('1899-12-30')) / pd.Timedelta(days=1):.6f}" for one in HOURS],
        {"frequency": "h", "time_format": "days since 1899-12-30"},
    ),
    "half past": ([f"{one:%Y-%m-%d %H}:30" for one in HOURS], {"frequency": "h"}),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_stamps_of_text_are_written_as_the_input_writes_them(tmp_path, kind):
    cells, reading = TEXTS[kind]
    known, ahead = cells[:-NEXT], cells[-NEXT:]
    series = whole(tmp_path, {"id": "a", "at": known, "y": np.arange(len(known))}, reading=reading, csv=True)
    assert list(series.stamps(0, start=0, length=len(known))) == known
    assert list(series.stamps(0, start=len(known), length=NEXT)) == ahead
    assert series.note == ""


TYPED = {
    "naive, in microseconds": (pa.array(HOURS).cast(pa.timestamp("us")), {"frequency": "h"}),
    "naive, in milliseconds": (pa.array(HOURS).cast(pa.timestamp("ms")), {"frequency": "h"}),
    "in a zone": (
        pa.array(UTC).cast(pa.timestamp("us", "America/New_York")),
        {"frequency": "h"},
    ),
    "naive, said to be of a zone": (
        pa.array(BERLIN.tz_localize(None)).cast(pa.timestamp("ns")),
        {"frequency": "h", "time_zone": "Europe/Berlin"},
    ),
    "dates": (pa.array(DAYS.date), {"frequency": "D"}),
    "milliseconds since 1970": (
        pa.array(HOURS.as_unit("ms").asi8),
        {"frequency": "h", "time_format": "milliseconds since 1970-01-01"},
    ),
    "steps": (
        pa.array(np.arange(96), pa.int32()),
        {"frequency": "30min", "time_format": "30 minutes since 2024-01-01"},
    ),
    "days in a zone": (
        pa.array(pd.date_range("2024-03-01", periods=96, freq="D", tz="Europe/Berlin")),
        {"frequency": "D", "time_zone": "Europe/Berlin"},
    ),
}


@pytest.mark.parametrize("kind", TYPED)
def test_typed_stamps_keep_type_unit_and_zone(tmp_path, kind):
    cells, reading = TYPED[kind]
    known = cells[:-NEXT]
    columns = {"id": pa.array(["a"] * len(known)), "at": known, "y": np.arange(float(len(known)))}
    series = whole(tmp_path, columns, reading=reading, csv=False)
    written = pa.array(series.stamps(0, start=0, length=len(cells)))
    assert written.type == cells.type
    assert written.equals(cells)


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (pa.array([3, 7], pa.int32()), "int32"),
        (pa.array([3, 7], pa.int64()), "int64"),
        (pa.array(["007", "3"]), "str"),
        (pa.array(["007", "3"]).dictionary_encode(), "str"),
    ],
)
def test_ids_keep_their_type(tmp_path, ids, kind):
    who = pa.chunked_array([ids]).combine_chunks().take(pa.array([0] * 9 + [1] * 9))
    columns = {"id": who, "at": pa.array(list(HOURS[:9]) * 2), "y": np.arange(18.0)}
    series = whole(tmp_path, columns, reading={"frequency": "h"}, csv=False)
    assert list(series.names) == ids.to_pylist()
    assert pd.Series(np.repeat(series.names[0], 2)).dtype == kind


def test_ids_of_a_csv_stay_text_with_their_zeros_and_blanks(tmp_path):
    (tmp_path / "t.csv").write_text(
        "id,at,y\n" + "".join(f"{who},{at},1\n" for who in ("007", " x ", "3") for at in HOURS[:9])
    )
    data = Table(
        str(tmp_path / "t.csv"),
        name="spelt",
        layout=Long(id_column="id", time_column="at", target_columns=["y"]),
        reading=Reading(frequency="h"),
        context_length=3,
        horizon=3,
        cache_dir=str(tmp_path / "cache"),
    )
    assert sorted(data.whole_series().names) == [" x ", "007", "3"]


def test_columns_of_a_wide_table_are_the_ids(tmp_path):
    loads = np.random.default_rng(0).random((2, 96))
    columns = {"at": HOURS.strftime("%Y-%m-%d %H:%M"), "007": loads[0], "meter 2": loads[1]}
    layout = Wide(time_column="at", value_name="kwh")
    series = whole(tmp_path, columns, reading={"frequency": "h"}, layout=layout, csv=True)
    assert list(series.names) == ["007", "meter 2"]
    assert (layout.id_column, layout.channel_names) == ("customer", ["kwh"])


def test_stamps_in_several_ways_are_said_to_be(tmp_path):
    cells = [
        f"{one:%Y-%m-%d %H:%M}" if number % 4 else f"{one:%Y-%m-%dT%H:%M}" for number, one in enumerate(HOURS)
    ]
    series = whole(
        tmp_path, {"id": "a", "at": cells, "y": np.arange(96)}, reading={"frequency": "h"}, csv=True
    )
    assert "of which 72 of the 96 looked at are as those written here" in series.note
    assert list(series.stamps(0, start=1, length=2)) == cells[1:3]


def test_an_hour_that_the_clock_has_twice_is_written_as_the_clock_shows_it(tmp_path):
    stamps = pd.date_range("2024-10-26", periods=24, freq="h", tz="Europe/Berlin").strftime("%Y-%m-%d %H:%M")
    series = whole(
        tmp_path,
        {"id": "a", "at": stamps, "y": np.arange(24)},
        reading={"frequency": "h", "time_zone": "Europe/Berlin"},
        csv=True,
    )
    ahead = list(series.stamps(0, start=24, length=5))
    assert ahead == [f"2024-10-27 {clock}" for clock in ("00:00", "01:00", "02:00", "02:00", "03:00")]
