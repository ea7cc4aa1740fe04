"""The clock of a table: equal steps of time, or whole months."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

_DAY_NS = 86_400 * 10**9
_MONTHS = {"Month": 1, "Quarter": 3, "Year": 12}


@dataclass(frozen=True, kw_only=True)
class Frequency:
    """Steps that are counted from 1970, so that no data decides where they begin.

    Attributes:
        nanoseconds: of a step, or 0 where a step is whole months.
        months: of a step, or 0.
        phase: what a stamp is past the step's beginning (nanoseconds, or months); equal for all stamps.
    """

    nanoseconds: int = 0
    months: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        assert (self.nanoseconds > 0) != (self.months > 0)

    @classmethod
    def parse(cls, text: str) -> "Frequency":
        """From pandas' notation: "30min", "h", "D", "W", "MS".

        Raises:
            ValueError: it is none, or its steps differ in a way that can't be counted.
        """
        try:
            offset = pd.tseries.frequencies.to_offset(text)
        except ValueError:
            offset = None
        kind = type(offset).__name__
        for word, months in _MONTHS.items():
            if kind in (f"{word}Begin", f"{word}End"):
                return cls(months=months * offset.n)
        length = {"Day": pd.Timedelta(days=1), "Week": pd.Timedelta(weeks=1)}.get(kind)
        try:
            step = offset.n * length if length is not None else pd.Timedelta(offset)
        except (ValueError, TypeError):
            step = pd.Timedelta(0)
        if not step > pd.Timedelta(0):
            raise ValueError(
                f"reading.frequency is {text!r}; it must be a positive step such as '30min', 'h', 'D' or "
                "'MS'."
            )
        return cls(nanoseconds=int(step.as_unit("ns").value))

    @classmethod
    def of_distance(cls, nanoseconds: int) -> "Frequency":
        """The frequency whose neighbouring stamps lie so far apart."""
        days = nanoseconds / _DAY_NS
        for months, low, high in ((1, 28, 31), (3, 90, 92), (12, 365, 366)):
            if low <= days <= high:
                return cls(months=months)
        return cls(nanoseconds=nanoseconds)

    @property
    def is_days(self) -> bool:
        """Whether a step is a day or longer."""
        return self.months > 0 or self.nanoseconds >= _DAY_NS

    @property
    def steps_per_day(self) -> int:
        """1 where a day has no whole number of steps."""
        if self.is_days or _DAY_NS % self.nanoseconds:
            return 1
        return _DAY_NS // self.nanoseconds

    def phases(self, stamps: np.ndarray) -> np.ndarray:
        """What int64 nanoseconds since 1970 are past the beginning of their steps."""
        return _months(stamps) % self.months if self.months else stamps % self.nanoseconds

    def numbers(self, stamps: np.ndarray) -> np.ndarray:
        """The steps that int64 nanoseconds since 1970 lie in."""
        return _months(stamps) // self.months if self.months else stamps // self.nanoseconds

    def first_number_from(self, stamp: int) -> int:
        """The first step whose own stamp is not before `stamp`."""
        number = int(self.numbers(np.array([stamp]))[0])
        return number if self.stamps(np.array([number]))[0].value >= stamp else number + 1

    def stamps(self, numbers: np.ndarray) -> pd.DatetimeIndex:
        """The stamps of steps."""
        if self.months:
            months = numbers * self.months + self.phase
            return pd.DatetimeIndex(months.astype("datetime64[M]").astype("datetime64[ns]"))
        return pd.DatetimeIndex((numbers * self.nanoseconds + self.phase).astype("datetime64[ns]"))

    def __str__(self) -> str:
        return f"{self.months} month(s)" if self.months else str(pd.Timedelta(self.nanoseconds))


def most_common_distance(stamps: np.ndarray, codes: np.ndarray) -> int | None:
    """Nanoseconds between neighbouring stamps of the same customer, the most common one; None without any.

    Args:
        stamps: (R,) int64 nanoseconds.
        codes: (R,) whose they are.
    """
    order = np.lexsort((stamps, codes))
    distances = np.diff(stamps[order])[np.diff(codes[order]) == 0]
    distances = distances[distances > 0]
    if not len(distances):
        return None
    values, counts = np.unique(distances, return_counts=True)
    return int(values[counts.argmax()])


def _months(stamps: np.ndarray) -> np.ndarray:
    return stamps.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
