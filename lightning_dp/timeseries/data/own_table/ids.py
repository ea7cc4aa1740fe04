"""Cells as ids of customers: who is the same, who may be, and who is nobody.

Two people under one id share one budget, and one person under two ids has twice the influence that ε covers,
so neither is decided by how ids happen to be written: what is nearly alike is asked for.
"""

import re
import unicodedata
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_dp.timeseries.data.own_table.files import Rows
from lightning_dp.timeseries.data.own_table.reading import Reading
from lightning_dp.told import debugging, told

_WHOLE = re.compile(r"\s*([+-]?)0*(\d+?)(?:\.0*)?\s*")
_EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}
_SHOWN = 10


class NearlyAlike(ValueError):
    """Ids that may mean the same customer.

    Attributes:
        groups: spellings that may be one.
    """

    def __init__(self, message: str, groups: list[list[str]]) -> None:
        super().__init__(message)
        self.groups = groups


def read_ids(rows: Rows, column: str, *, reading: Reading) -> pa.Array:
    """(R,) text as it is written, null where nobody is named.

    Raises:
        ValueError: the column holds something else than text or whole numbers.
    """
    array = rows.columns[column]
    kind = array.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        raise ValueError(
            f"{rows.file}, column {column!r} holds {kind} as ids, which have no spelling to tell people "
            "apart by: write them as text (UTF-8 or hexadecimal)."
        )
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        array = _whole(rows, column, array)
    elif pa.types.is_integer(kind):
        array = pc.cast(array, pa.string())
    elif pa.types.is_null(kind):
        array = pa.nulls(len(array), pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{rows.file}, column {column!r} holds {kind}; ids must be text or whole numbers.")
    encoded = pc.cast(array, pa.string()).dictionary_encode()
    nobody = set(reading.missing_texts)
    names = [
        None if name is None or name.strip() in nobody else name for name in encoded.dictionary.to_pylist()
    ]
    ids = pa.array(names, pa.string()).take(encoded.indices)
    if reading.missing_ids == "error" and ids.null_count:
        row = pc.index(pc.is_null(ids), True).as_py()
        cell = rows.columns[column][row].as_py()
        what = "is empty" if cell is None or not str(cell).strip() else f"holds {told(cell)}, a missing value"
        raise ValueError(
            f"{rows.where(row, column)} {what}; every reading needs the customer whose it is: mend it, or "
            "set "
            "reading.missing_ids to 'drop' to leave such rows out (and reading.missing_values, if that text "
            "is somebody)."
        )
    return ids


def _whole(rows: Rows, column: str, array: pa.Array) -> pa.Array:
    """Ids that a program keeps as fractions, such as 101.0, which tells them from 101."""
    numbers = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    known = np.isfinite(numbers)
    limit = _EXACT.get(array.type, 2**53)
    wrong = known & ((numbers != np.rint(numbers)) | (np.abs(numbers) >= limit))
    if wrong.any():
        raise ValueError(
            f"{rows.where(int(wrong.argmax()), column)} holds {told(float(numbers[wrong][0]))} as an id, "
            f"which {array.type} may have rounded: write ids as text or whole numbers."
        )
    texts = [f"{int(number)}.0" if real else None for number, real in zip(numbers, known, strict=True)]
    return pa.array(texts, pa.string())


def canonical(name: str, *, reading: Reading, where: str = "an id") -> str:
    """What an id is known by, as `reading.ids` says.

    Raises:
        ValueError: it is to be a number and is none.
    """
    if reading.ids == "number":
        match = _WHOLE.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{where} is {told(name)}, which is no whole number, as reading.ids says: set it to 'text' "
                "or 'folded'."
            )
        return f"{'-' if match[1] == '-' and match[2] != '0' else ''}{match[2]}"
    return _folded(name) if reading.ids == "folded" else name


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name)
    plain = "".join(mark for mark in plain if unicodedata.category(mark) not in ("Cf", "Cc"))
    return unicodedata.normalize("NFKC", " ".join(plain.split()).casefold())


def _near(name: str) -> str:
    """Equal for ids that may be one: but for zeros, a fraction of zeros, capitals, blanks, Unicode forms."""
    folded = _folded(name)
    match = _WHOLE.fullmatch(folded)
    return f"{match[1].replace('+', '')}{match[2]}" if match else folded


@dataclass(kw_only=True)
class Directory:
    """Everybody in a table, over all its files.

    Attributes:
        reading: how the table is written.
        codes: number of each customer, by what they are known by.
        spelled: as each is written where they first appear.
    """

    reading: Reading
    codes: dict[str, int] = field(default_factory=dict)
    spelled: list[str] = field(default_factory=list)
    _code_of: dict[str, int] = field(default_factory=dict)
    _near_to: dict[str, list[str]] = field(default_factory=dict)
    _kinds: dict[str, str] = field(default_factory=dict)
    _place_of: dict[str, str] = field(default_factory=dict)

    def look_up(self, names: pa.Array, *, where: "Where") -> np.ndarray:
        """(R,) numbers of R ids without a null; new ones are entered.

        Raises:
            ValueError: one is to be a number and is none.
        """
        encoded = names.dictionary_encode()
        codes = np.empty(len(encoded.dictionary), dtype=np.int64)
        indices = encoded.indices.to_numpy(zero_copy_only=False)
        for place, name in enumerate(encoded.dictionary.to_pylist()):
            code = self._code_of.get(name)
            if code is None:
                code = self._enter(name, place=where(int((indices == place).argmax())))
            codes[place] = code
        return codes[indices]

    def _enter(self, name: str, *, place: str) -> int:
        known_by = canonical(name, reading=self.reading, where=place)
        code = self.codes.setdefault(known_by, len(self.codes))
        self._code_of[name] = code
        if code == len(self.spelled):
            self.spelled.append(name)
        if self.reading.ids is None:
            self._near_to.setdefault(_near(name), []).append(name)
            self._place_of[name] = place
        return code

    def note_kind(self, kind: str, *, place: str) -> None:
        """Refuse numbers in one file and text in another, which a program tells apart and people do not."""
        self._kinds.setdefault(kind, place)
        if len(self._kinds) > 1 and self.reading.ids is None:
            (one, first), (other, second) = list(self._kinds.items())[:2]
            raise ValueError(
                f"ids are {one} in {first} and {other} in {second}: set reading.ids to 'number' if 101 and "
                "'00101' are one customer, or to 'text' if only what is written alike is."
            )

    def check(self) -> None:
        """Refuse ids that are nearly alike.

        Raises:
            NearlyAlike: there are some, and `reading.ids` doesn't say what they are.
        """
        groups = [names for names in self._near_to.values() if len(names) > 1]
        if not groups:
            return
        first, second = groups[0][:2]
        shown = ""
        if debugging():
            shown = "; ".join(" and ".join(map(repr, group)) for group in groups[:_SHOWN]) + ": "
        raise NearlyAlike(
            f"{sum(map(len, groups))} ids differ only by zeros, a '.0', capitals, blanks or the form of "
            f"their letters from another one, such as those at {self._place_of[first]} and "
            f"{self._place_of[second]}: {shown}{self._joining(groups)}, and reading.ids to 'text' if they "
            "are several; 'lightning-dp data check' lists them.",
            groups,
        )

    def _joining(self, groups: list[list[str]]) -> str:
        """By which rule the spellings of each group are one."""
        whole = all(_WHOLE.fullmatch(name) for name in self._code_of)
        if whole:
            return "set reading.ids to 'number' if they are one customer"
        if all(len({_folded(name) for name in group}) == 1 for group in groups):
            return "set reading.ids to 'folded' if they are one customer"
        return "write each in one way if they are one customer"


class Where:
    """The address of a row's id, made when it is asked for."""

    def __init__(self, rows: Rows | None, column: str, *, file: str = "") -> None:
        self._rows, self._column, self._file = rows, column, file

    def __call__(self, row: int) -> str:
        if self._rows is None:
            return f"{self._file}, name of customer's column {row + 1}"
        return self._rows.where(row, self._column)
