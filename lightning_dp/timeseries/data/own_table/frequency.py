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
    def infer(cls, stamps: np.ndarray, codes: np.ndarray) -> "tuple[Frequency, float] | None":
        """The most common distance of neighbouring stamps of a customer; None where nobody has two stamps.

        Months are steps only where stamps show it: at least three months, all on the same day of the month,
        or all on a month's last day. 28, 30 or 31 days alone are days.

        Args:
            stamps: (R,) int64 nanoseconds.
            codes: (R,) whose they are.

        Returns:
            The frequency, and the share of distances that are one step of it.
        """
        order = np.lexsort((stamps, codes))
        sorted_stamps = stamps[order]
        distances = np.diff(sorted_stamps)
        wanted = (np.diff(codes[order]) == 0) & (distances > 0)
        if not wanted.any():
            return None
        values, counts = np.unique(distances[wanted], return_counts=True)
        common = int(values[counts.argmax()])
        days = common / _DAY_NS
        for months, low, high in ((1, 28, 31), (3, 90, 92), (12, 365, 366)):
            if low <= days <= high and _at_months(stamps, months=months):
                steps = np.diff(_months(sorted_stamps))[wanted]
                return cls(months=months), float((steps == months).mean())
        return cls(nanoseconds=common), float(counts.max() / counts.sum())

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


def _at_months(stamps: np.ndarray, *, months: int) -> bool:
    """Whether stamps lie on one day of the month, or all on the last, in ≥ 3 months that are so far apart."""
    days = np.unique(stamps // _DAY_NS)
    month = np.unique(_months(stamps))
    if len(month) < 3 or (month % months != month[0] % months).any():
        return False
    starts = days - _months(days * _DAY_NS).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    nexts = _months((days + 1) * _DAY_NS)
    return bool((starts == starts[0]).all() or (nexts > _months(days * _DAY_NS)).all())


def _months(stamps: np.ndarray) -> np.ndarray:
    return stamps.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
