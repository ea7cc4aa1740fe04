"""What the columns of a table seem to be, for a look at a file of which nothing has been said yet.

A fit never guesses: its configuration names the columns.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lightning_dp.timeseries.data.own_table.files import Rows, TableFile
from lightning_dp.timeseries.data.own_table.layout import Layout, Long, Wide
from lightning_dp.timeseries.data.own_table.numbers import read_numbers
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.timeseries.data.own_table.stamps import read_stamps

_SEEN = 5000


def guess_layout(
    file: TableFile,
    *,
    reading: Reading,
    id_column: str | None = None,
    time_column: str | None = None,
    targets: Sequence[str] = (),
    ignored: Sequence[str] = (),
    wide: bool = False,
) -> Layout:
    """The columns as they are stated, and the others by what the first rows hold.

    One row a reading if a column of text, or of whole numbers, names somebody; else one column a customer.

    Args:
        file: one of the table.
        reading: how it is written.
        id_column: of the customer; None = look.
        time_column: of the stamp; None = look.
        targets: columns of measurements, or of customers; empty = look.
        ignored: columns that are nothing of all this.
        wide: one column is one customer.

    Raises:
        ValueError: it can't be told.
    """
    rows = next(file.read(file.column_names), None)
    if rows is None or not len(rows):
        raise ValueError(f"{file.path} has no rows below its header.")
    rows = rows.only(np.arange(len(rows)) < _SEEN)
    if time_column is None:
        found = [name for name in file.column_names if name != id_column and _are_stamps(rows, name, reading)]
        if len(found) != 1:
            raise ValueError(
                f"{file.path} has {len(found)} columns that can be read as stamps in its first rows: name "
                "the one by --time, and how it is written by --reading.time_format."
            )
        time_column = found[0]
    others = [name for name in file.column_names if name not in (id_column, time_column, *ignored)]
    numbers = [name for name in others if _are_numbers(rows, name, reading)]
    if id_column is None and not wide:
        texts = [name for name in others if name not in numbers and name not in targets]
        stamps = read_stamps(rows, time_column, reading=reading, wall_clock=False)
        if not texts and len(np.unique(stamps)) == len(stamps):
            wide = True
        else:
            candidates = texts or [name for name in numbers if _tells_apart(rows, name, stamps, reading)]
            if len(candidates) != 1:
                raise ValueError(
                    f"{file.path} has {len(candidates)} columns that may name the customer: name the one by "
                    "--id, or give --wide if each column is a customer."
                )
            id_column = candidates[0]
    if wide:
        return Wide(time_column=time_column, id_columns=list(targets) or None, ignored_columns=list(ignored))
    assert id_column is not None
    measured = list(targets) or [name for name in numbers if name != id_column]
    if not measured:
        raise ValueError(
            f"{file.path} has no further column of numbers in its first rows: name one by --target, and how "
            "numbers are written by --reading.decimal and --reading.thousands."
        )
    return Long(id_column=id_column, time_column=time_column, target_columns=measured)


def _are_stamps(rows: Rows, column: str, reading: Reading) -> bool:
    kind = rows.columns[column].type
    if reading.time_format is None and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return False
    try:
        read_stamps(rows, column, reading=reading, wall_clock=True)
    except ValueError:
        return False
    return True


def _are_numbers(rows: Rows, column: str, reading: Reading) -> bool:
    try:
        return not np.isnan(read_numbers(rows, [column], reading=reading)).all()
    except ValueError:
        return False


def _tells_apart(rows: Rows, column: str, stamps: np.ndarray, reading: Reading) -> bool:
    """Whether whole numbers name few customers of many rows, none of whom has a stamp twice."""
    values = read_numbers(rows, [column], reading=reading)[:, 0]
    if np.isnan(values).any() or (values != np.rint(values)).any():
        return False
    pairs = np.stack([values, stamps], axis=1)
    return len(np.unique(pairs, axis=0)) == len(pairs) and len(np.unique(values)) < len(values)
