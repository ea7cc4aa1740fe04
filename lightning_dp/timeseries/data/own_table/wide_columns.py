"""Columns of a wide table that may be no customers: row numbers, totals, columns without a name.

A name decides nothing: what a column holds is looked at, and the user says what it is.
"""

import re

import numpy as np

from lightning_dp.told import debugging

_NAMELESS = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")  # as pandas writes and reads what has no name
_FEWEST_ROWS = 3
_FEWEST_OTHERS = 2
_RELATIVE = 1e-6


def check_named(columns: list[str], *, file: object) -> None:
    """Refuse a column without a name, which is no customer.

    Raises:
        ValueError: there is one.
    """
    for number, column in enumerate(columns, start=1):
        if _NAMELESS.fullmatch(column):
            raise ValueError(
                f"{file} has a customer's column without a name ({column!r}, number {number} of "
                f"{len(columns)}), as an index that was saved with a table: list it in "
                "layout.ignored_columns, or the customers in layout.id_columns."
            )


class WideColumns:
    """Whether a column of one file counts rows, or is the sum or the mean of the others."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        count = len(columns)
        self._first = np.full(count, np.nan)
        self._counts = np.ones(count, dtype=bool)
        self._rows = 0
        self._sums = np.ones(count, dtype=bool)
        self._means = np.ones(count, dtype=bool)
        self._others = np.zeros(count, dtype=bool)  # whether two others are other than 0 in some row

    def note(self, values: np.ndarray) -> None:
        """Look at (R, N) readings, NaN where missing, which follow those of the last call."""
        if not len(values):
            return
        if not self._rows:
            self._first = values[0]
        steps = np.arange(self._rows, self._rows + len(values))[:, None]
        whole = self._first == np.rint(self._first)
        self._counts &= whole & (values == self._first + steps).all(axis=0)
        self._rows += len(values)
        real = np.where(self._counts, np.nan, values)  # a count has no part in a total
        total = np.nansum(real, axis=1)[:, None]
        known = ~np.isnan(values)
        number = (~np.isnan(real)).sum(axis=1)[:, None] - ~np.isnan(real)
        size = np.nansum(np.abs(real), axis=1)[:, None] * _RELATIVE
        rest = np.where(np.isnan(real), total, total - real)
        filled = np.nan_to_num(values)
        nonzero = (np.nan_to_num(real) != 0).sum(axis=1)[:, None] - (np.nan_to_num(real) != 0)
        self._sums &= ~(known & (np.abs(filled - rest) > size)).any(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = rest / number
        self._means &= ~(known & ~(np.abs(filled - mean) <= size)).any(axis=0)
        self._others |= (known & (nonzero >= _FEWEST_OTHERS)).any(axis=0)

    def check(self, *, file: object) -> None:
        """Refuse a column that is no customer by what it holds.

        Raises:
            ValueError: there is one; the user says which columns are customers.
        """
        if self._rows < _FEWEST_ROWS:
            return
        for found, what in (
            (self._counts, "counts its rows"),
            (self._sums & self._others, "is the sum of the others"),
            (self._means & self._others, "is the mean of the others"),
        ):
            if found.any() and len(self._columns) > 1:
                place = int(found.argmax())
                name = f" ({self._columns[place]!r})" if debugging() else ""
                raise ValueError(
                    f"{file}, customer's column number {place + 1}{name} {what}, which may be no customer: "
                    "list it in layout.ignored_columns, or every customer in layout.id_columns."
                )
