"""Stamps as text: one way of writing them, and the ways that cells of a table may be written in."""

import itertools
import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

_ISO = re.compile(
    r"(?P<date>\d{4}([-/])\d{1,2}(?:\2\d{1,2})?|\d{8})"
    r"(?:(?P<sep>[T ])(?P<time>\d{1,2}(?::\d\d(?::\d\d)?)?|\d{4}(?:\d\d)?)"
    r"(?:(?P<point>[.,])(?P<fraction>\d+))?"
    r"(?P<space> ?)(?P<offset>Z|[+-]\d\d(?::?\d\d)?)?)?"
)
_OFFSET = re.compile(r":.*?(Z|([+-])(\d\d)(?::?(\d\d))?)$")
_UNPADDED = ("%d", "%m", "%H", "%I")
_OFFSET_STYLES = ("Z", "+hh:mm", "+hhmm", "+hh")


@dataclass(frozen=True, kw_only=True)
class DateTimeText:
    """One way of writing a stamp.

    Attributes:
        pattern: strftime's letters, without fraction and offset; `%-d` for a number without its leading 0.
        fraction: digits of a second's fraction, after `point`; 0 for none.
        point: before the fraction.
        space: before the offset.
        offset: "" for none, "Z", "+hh:mm", "+hhmm" or "+hh".
        after: of the pattern, what stands behind the offset.
        midnight_as_24: midnight is 24:00 of the day before.
    """

    pattern: str
    fraction: int = 0
    point: str = "."
    space: str = ""
    offset: str = ""
    after: str = ""
    midnight_as_24: bool = False

    @classmethod
    def iso(cls) -> "DateTimeText":
        """As pandas prints it."""
        return cls(pattern="%Y-%m-%d %H:%M:%S")

    @property
    def tells_offset(self) -> bool:
        """Whether a stamp says how far it is from UTC."""
        return bool(self.offset)

    @staticmethod
    def offset_of(text: str) -> int | None:
        """Minutes that a cell is ahead of UTC; None where it doesn't say."""
        match = _OFFSET.search(text)
        if match is None:
            return None
        if match[1] == "Z":
            return 0
        minutes = 60 * int(match[3]) + int(match[4] or 0)
        return minutes if match[2] == "+" else -minutes

    def write(self, local: pd.DatetimeIndex, minutes: np.ndarray | None) -> list[str]:
        """(S,) texts.

        Args:
            local: (S,) what the wall clock shows.
            minutes: (S,) its offsets from UTC, where the text tells them.
        """
        pattern = self.pattern
        shown = local
        at_24 = np.zeros(len(local), dtype=bool)
        if self.midnight_as_24:
            at_24 = np.asarray(local == local.normalize())
            shown = local - pd.to_timedelta(at_24.astype(int), unit="D")
        texts = list(shown.strftime(pattern))
        if at_24.any():
            late = list(shown.strftime(pattern.replace("%-H", "24").replace("%H", "24")))
            texts = [other if there else one for one, other, there in zip(texts, late, at_24, strict=True)]
        if self.fraction:
            nanoseconds = local.as_unit("ns").asi8 % 10**9
            texts = [
                f"{one}{self.point}{number:09d}"[: len(one) + 1 + self.fraction]
                for one, number in zip(texts, nanoseconds, strict=True)
            ]
        if self.offset:
            assert minutes is not None
            texts = [
                f"{one}{self.space}{self._offset_text(int(ahead))}"
                for one, ahead in zip(texts, minutes, strict=True)
            ]
        return [f"{one}{self.after}" for one in texts] if self.after else texts

    def _offset_text(self, minutes: int) -> str:
        if self.offset == "Z":
            if minutes == 0:
                return "Z"
            return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
        sign, hours, rest = "-" if minutes < 0 else "+", abs(minutes) // 60, abs(minutes) % 60
        if self.offset == "+hh" and not rest:
            return f"{sign}{hours:02d}"
        return f"{sign}{hours:02d}{':' if self.offset == '+hh:mm' else ''}{rest:02d}"


def text_candidates(cells: list[str], *, time_format: str | None) -> list[DateTimeText]:
    """The ways in which cells may be written, at most a few dozen.

    Args:
        cells: some of them, without surrounding blanks.
        time_format: what `Reading` says of them.
    """
    late = any(re.search(r"\b24:?00", cell) for cell in cells)
    found = _of_format(time_format) if time_format and "%" in time_format else _of_iso(cells)
    return [replace(one, midnight_as_24=True) for one in found] + found if late else found


def _of_iso(cells: list[str]) -> list[DateTimeText]:
    found: dict[DateTimeText, None] = {}
    for cell in cells:
        match = _ISO.fullmatch(cell)
        if match is None:
            continue
        date = _numbered(match["date"], ("%Y", "%m", "%d"), mark=match[2] or "")
        time = (
            f"{match['sep']}{_numbered(match['time'], ('%H', '%M', '%S'), mark=':')}" if match["time"] else ""
        )
        offset = match["offset"] or ""
        style = offset if offset in ("", "Z") else {6: "+hh:mm", 5: "+hhmm", 3: "+hh"}[len(offset)]
        text = DateTimeText(
            pattern=date + time,
            fraction=len(match["fraction"] or ""),
            point=match["point"] or ".",
            space=match["space"] or "",
            offset=style,
        )
        found[text] = None
        if len(found) == 12:
            break
    return list(found)


def _numbered(text: str, letters: tuple[str, ...], *, mark: str) -> str:
    """The pattern of numbers between marks, or of numbers without any."""
    if not mark or mark not in text:
        sizes = {2: 1, 1: 1, 4: 2, 6: 3, 8: 3}  # of a compact text, by its length
        parts = letters[: sizes[len(text)]]
        return "%-H" if parts == ("%H",) and len(text) == 1 else "".join(parts)
    return mark.join(
        f"%-{one[1]}" if len(number) == 1 else one
        for number, one in zip(text.split(mark), letters, strict=False)
    )


def _of_format(time_format: str) -> list[DateTimeText]:
    """strptime reads numbers with and without leading zeros: which it is shows by comparison."""
    before, offset, after = time_format.partition("%z")
    before, fraction, rest = before.partition("%f")
    if rest:
        return []  # a fraction in the middle of a stamp
    point = before[-1] if fraction else "."
    before = before[:-1] if fraction else before
    present = [letters for letters in _UNPADDED if letters in before]
    found = []
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(present, count) for count in range(len(present) + 1)
    ):
        pattern = before
        for letters in chosen:
            pattern = pattern.replace(letters, f"%-{letters[1]}")
        for digits in (6, 3, 9, 2, 1) if fraction else (0,):
            for style in _OFFSET_STYLES if offset else ("",):
                found.append(
                    DateTimeText(pattern=pattern, fraction=digits, point=point, offset=style, after=after)
                )
    return found
