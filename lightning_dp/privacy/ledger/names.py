"""Names of data sets: one spelling each, and none that could be taken for another."""

import unicodedata
from collections.abc import Iterable


def normalised(field: str, value: object) -> str:
    """The one spelling of a name: Unicode's composed form (NFC), blanks at the ends gone, others single.

    Args:
        field: for the message.
        value: the name.

    Raises:
        ValueError: it is empty, longer than 200 characters, or has characters that can't be seen.
    """
    if isinstance(value, str):
        name = " ".join(unicodedata.normalize("NFC", value).split(" ")).strip()
        name = " ".join(part for part in name.split(" ") if part)
        if 0 < len(name) <= 200 and name.isprintable():
            return name
    raise ValueError(f"{field} is {value!r}; it must be 1 to 200 printable characters.")


def spelt(name: str) -> str:
    """A name in its one spelling; what is no name stays as it is."""
    try:
        return normalised("dataset", name)
    except ValueError:
        return name


def check_text(field: str, value: str) -> str:
    """A reason or note as it is kept: without blanks at the ends.

    Raises:
        ValueError: it has control characters, which a terminal would obey, or more than 1000 characters.
    """
    text = value.strip()
    if len(text) > 1000 or not text.isprintable():
        raise ValueError(f"{field} is {value!r}; it must be one line of at most 1000 printable characters.")
    return text


def check_alike(name: str, known: Iterable[str]) -> None:
    """Raise ValueError where a name differs from a known one by case, width or such only, and say which."""
    for other in known:
        if other != name and _folded(other) == _folded(name):
            raise ValueError(
                f"dataset is {name!r}, and the ledger knows {other!r}: two data sets can't differ by that "
                f"alone, so write {other!r}, or choose a name that nobody takes for it."
            )


def shown(text: str) -> str:
    """A text for a terminal: what it would obey rather than show is written out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _folded(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
