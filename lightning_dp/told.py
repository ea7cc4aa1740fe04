"""What messages may say of private values: what kind they are, not what they are.

Messages are copied: to terminals, job logs, `stderr.txt` and the databases of sweeps. With
LIGHTNING_DP_DEBUG=1 they quote what they speak of, for whoever may see the data.
"""

import os
import re
import unicodedata
from typing import Any

_KINDS = {"L": "a letter", "N": "a digit", "P": "punctuation", "S": "a symbol", "Z": "a blank"}
_NUMBER_START = re.compile(r"\s*[+-]?\d*(?:[.,]\d*)?(?:[eE][+-]?\d*)?")


def debugging() -> bool:
    """Whether messages may quote private values."""
    return bool(os.environ.get("LIGHTNING_DP_DEBUG"))


def told(value: Any) -> str:
    """A private value for a message: its type, its length, and the kind of its first character.

    >>> told("HIV+ see Dr Müller")
    'a text of 18 characters that begins with a letter'
    >>> told(None)
    'nothing'
    """
    if debugging():
        return repr(value)
    if value is None:
        return "nothing"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    if not value:
        return "an empty text"
    size = "1 character" if len(value) == 1 else f"{len(value)} characters"
    return f"a text of {size} that begins with {_kind(value[0])}"


def told_number(value: Any) -> str:
    """A private cell that ought to be a number: also where it stops being one.

    >>> told_number("12,5 kWh")
    'a text of 8 characters that begins with a digit and has a blank at place 5'
    """
    text = told(value)
    if debugging() or not isinstance(value, str):
        return text
    match = _NUMBER_START.match(value)
    end = match.end() if match else 0
    return text if end in (0, len(value)) else f"{text} and has {_kind(value[end])} at place {end + 1}"


def told_place(number: int, name: str) -> str:
    """Somebody in the data, by their number from 0 on; messages count from 1."""
    return repr(name) if debugging() else f"number {number + 1}"


def told_error(error: BaseException) -> str:
    """What a reader of other people says of a file: its text may quote what the file holds."""
    return f"{type(error).__name__}: {error}" if debugging() else type(error).__name__


def _kind(character: str) -> str:
    return _KINDS.get(unicodedata.category(character)[0], "a control character")
