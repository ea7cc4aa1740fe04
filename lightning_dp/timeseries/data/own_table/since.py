"""Stamps that are numbers: "UNIT since STAMP", in the words of the CF conventions for time coordinates.

Source: Eaton et al., NetCDF Climate and Forecast (CF) Metadata Conventions, section 4.4.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

_UNITS = {
    "nanosecond": 1,
    "microsecond": 10**3,
    "millisecond": 10**6,
    "second": 10**9,
    "minute": 60 * 10**9,
    "hour": 3600 * 10**9,
    "day": 86_400 * 10**9,
    "week": 7 * 86_400 * 10**9,
}
_WORDS = re.compile(r"(?:(\d+) )?(\w+?)s? since (\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)")
_SECOND = 10**9
_LIMIT = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Since:
    """Numbers that count from a stamp.

    Attributes:
        unit: nanoseconds that 1 stands for.
        start: nanoseconds since 1970 that 0 stands for.
    """

    unit: int
    start: int

    @classmethod
    def parse(cls, text: str) -> "Since":
        """From "seconds since 1970-01-01", "15 minutes since 2024-01-01" and the like.

        Raises:
            ValueError: it isn't written so.
        """
        match = _WORDS.fullmatch(text.strip())
        unit = _UNITS.get(match[2]) if match else None
        if match is None or unit is None:
            raise ValueError(
                f"reading.time_format is {text!r}; of numbers it is written as in 'seconds since 1970-01-01' "
                f"or '15 minutes since 2024-01-01', with one of {', '.join(f'{name}s' for name in _UNITS)}."
            )
        return cls(unit=unit * int(match[1] or 1), start=pd.Timestamp(match[3]).as_unit("ns").value)

    def nanoseconds(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R,) int64 nanoseconds since 1970, and (R,) bool, True where they leave 1678 … 2261.

        Fractions, in which a spreadsheet keeps the time of day, are rounded to whole seconds, and fractions
        of seconds to microseconds. Without a number nothing is right, so NaN counts as outside.

        Args:
            numbers: (R,) int64 or fp64.
        """
        room = (_LIMIT - abs(self.start)) // self.unit
        outside = ~(np.abs(numbers.astype(np.float64)) < room)
        safe = np.where(outside, 0, numbers)
        if numbers.dtype == np.int64:
            return safe * self.unit + self.start, outside
        grain = _SECOND if self.unit > _SECOND else min(self.unit, 1000)
        whole = np.floor(safe)
        rest = np.rint((safe - whole) * (self.unit / grain)).astype(np.int64) * grain
        return whole.astype(np.int64) * self.unit + rest + self.start, outside


def suggestions(numbers: np.ndarray) -> list[str]:
    """Formats by which all of (R,) numbers are stamps of 1990 to 2100, in which readings are made."""
    found = []
    low, high = (pd.Timestamp(year).as_unit("ns").value for year in ("1990", "2100"))
    for text in (
        "seconds since 1970-01-01",
        "milliseconds since 1970-01-01",
        "microseconds since 1970-01-01",
        "nanoseconds since 1970-01-01",
        "days since 1899-12-30",
    ):
        stamps, outside = Since.parse(text).nanoseconds(numbers)
        if not outside.any() and (stamps >= low).all() and (stamps < high).all():
            found.append(text)
    return found
