"""Arguments under the names that they had before."""

import warnings
from typing import TypeVar

T = TypeVar("T")


def renamed(value: T, old_value: T | None, *, new: str, old: str, default: T) -> T:
    """The value of an argument that may have been given by its old name, with a DeprecationWarning.

    Args:
        value: given as `new`.
        old_value: given as `old`; None where it was not.
        new, old: both names, for the message.
        default: of `new`.

    Raises:
        ValueError: both names were given.
    """
    if old_value is None:
        return value
    if value is not default and value != default:
        raise ValueError(f"{new} and {old} are both given, and {old} is the old name of {new}: leave it out.")
    warnings.warn(f"{old} is called {new} now; the old name will go.", DeprecationWarning, stacklevel=3)
    return old_value
