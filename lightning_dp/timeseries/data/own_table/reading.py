"""How a table is written: settings alone, which nothing of the table decides."""

import codecs
from dataclasses import dataclass
from typing import Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from lightning_dp.timeseries.data.own_table.since import Since

Duplicates = Literal["error", "first", "mean"]
Ids = Literal["text", "number", "folded"]
MissingIds = Literal["error", "drop"]
BLANKS = (" ", "\u00a0", "\u2009", "\u202f")
_THOUSANDS = ("", ".", ",", "'", "’", "_", *BLANKS)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a table is written. Nothing is guessed but the frequency, and what is doubtful is asked for.

    Attributes:
        delimiter: between the columns of a CSV file.
        decimal: the decimal mark of numbers written as text.
        thousands: the mark between groups of digits, such as "," in 1,234.5; a blank stands for every kind of
            blank. "" = there is none, on your word. None = not stated: a column whose numbers can be read
            either way, all of them like 1,234 with a decimal comma, is refused.
        missing_values: texts and numbers that mean "nothing was measured", besides an empty cell; a number is
            compared by its value, in columns of numbers too. As an id they mean that nobody is named.
        time_format: of stamps, in strptime's letters, e.g. "%d.%m.%Y %H:%M", or for numbers in the words of
            the CF conventions: "seconds since 1970-01-01", "milliseconds since 1970-01-01",
            "days since 1899-12-30" (Excel), "15 minutes since 2024-01-01" (step numbers). None = ISO 8601.
            24:00 is midnight at the end of the day.
        time_zone: in which stamps without an offset are written, e.g. "Europe/Berlin"; the calendar features
            are then of local time. None = stamps are taken as they stand, and those with an offset as UTC.
        frequency: of the series, as pandas writes it: "30min", "h", "D", "MS"; a public fact. None = the most
            common distance of neighbouring stamps, which is read from the data and covered by no ε, so that a
            private fit refuses it.
        duplicates: several rows of one customer with the same stamp: refuse them, keep the first one, or
            take the mean of the targets (covariates keep the first).
        ids: when two ids mean the same customer: "text": when they are written alike, letter by letter;
            "number": when they are the same whole number, so that 00101, 101 and 101.0 are one; "folded":
            but for capitals, blanks at the ends and the Unicode form. None = not stated: ids that are nearly
            alike are refused.
        missing_ids: rows that name nobody: refuse them, or leave them out and count them.
        encoding: of CSV files.
        skip_lines: lines of a CSV file before the one that names its columns.
    """

    delimiter: str = ","
    decimal: str = "."
    thousands: str | None = None
    missing_values: tuple[str | int | float, ...] = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None")
    time_format: str | None = None
    time_zone: str | None = None
    frequency: str | None = None
    duplicates: Duplicates = "error"
    ids: Ids | None = None
    missing_ids: MissingIds = "error"
    encoding: str = "utf-8"
    skip_lines: int = 0

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise ValueError(f"reading.delimiter is {self.delimiter!r}; it must be one character.")
        if self.decimal not in (".", ",") or self.decimal == self.delimiter:
            raise ValueError(
                f"reading.decimal is {self.decimal!r}; it must be '.' or ',' and differ from the delimiter."
            )
        if self.thousands is not None and (
            self.thousands not in _THOUSANDS or self.thousands in (self.decimal, self.delimiter)
        ):
            raise ValueError(
                f"reading.thousands is {self.thousands!r}; it must be '.', ',', \"'\", '_', a blank or '', "
                "and differ from reading.decimal and the delimiter."
            )
        for field, kinds in (("duplicates", Duplicates), ("missing_ids", MissingIds)):
            if getattr(self, field) not in get_args(kinds):
                raise ValueError(
                    f"reading.{field} is {getattr(self, field)!r}; it must be one of "
                    f"{', '.join(get_args(kinds))}."
                )
        if self.ids is not None and self.ids not in get_args(Ids):
            raise ValueError(f"reading.ids is {self.ids!r}; it must be one of {', '.join(get_args(Ids))}.")
        if self.skip_lines < 0:
            raise ValueError(f"reading.skip_lines is {self.skip_lines}; it must be at least 0.")
        try:
            codecs.lookup(self.encoding)
            "".encode(self.encoding)  # some codecs are none of text
        except (LookupError, TypeError, ValueError):
            raise ValueError(
                f"reading.encoding is {self.encoding!r}, which is no encoding of text: write it as in "
                "'utf-8', 'latin-1', 'cp1252' or 'utf-16'."
            ) from None
        if self.time_format is not None and " since " in self.time_format:
            Since.parse(self.time_format)
        if self.time_zone is not None:
            try:
                ZoneInfo(self.time_zone)
            except (ZoneInfoNotFoundError, ValueError):
                raise ValueError(
                    f"reading.time_zone is {self.time_zone!r}, which is no time zone: write it as in "
                    "'Europe/Berlin'."
                ) from None

    @property
    def missing_texts(self) -> list[str]:
        """What stands for a missing cell, as text, the empty one included."""
        return ["", *(str(value) for value in self.missing_values)]

    @property
    def missing_numbers(self) -> list[float]:
        """Those of `missing_values` that are numbers; by value, so that -9999 is -9999.0."""
        numbers = []
        for value in self.missing_values:
            try:
                numbers.append(float(str(value).strip().replace("−", "-")))
            except ValueError:
                continue
        return numbers
