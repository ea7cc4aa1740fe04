"""The classes that a configuration may choose: by their short names, once they are imported."""

import logging
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

from lightning import pytorch

from lightning_dp.extras import MissingExtra, needed_by

_PACKAGES = (
    "adapters",
    "callbacks",
    "diffusion",
    "evolution",
    "images",
    "modules",
    "nets",
    "privacy",
    "timeseries",
)
_ALIKE = 0.65  # of difflib's ratio: `DayMeen` is .86 of `DayMean`, `ETH` is .67 of `ETT`


def import_choices() -> None:
    """Import every public class, so that a parser lists it in its help and knows it by its short name.

    What needs a package of an extra that is not installed is left out: it can't be chosen by any name.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for package, name in _public_names():
        try:
            with needed_by(name):
                getattr(import_module(f"lightning_dp.{package}"), name)
        except MissingExtra:
            continue
    root.handlers, root.level = handlers, level  # Opacus sets up everybody's logging when it is imported


def did_you_mean(message: str) -> str:
    """The message, and the public names nearest to one that it quotes and that is none.

    Where it quotes one that needs an extra which is not installed, the sentence that says so.
    """
    public = {name for _, name in _public_names()}
    known = public | set(dir(pytorch))  # a message may name the base class that was wanted
    for name in re.findall(r"\b[A-Z]\w+", message):
        if name in public and (missing := _missing(name)):
            return str(missing)
        near = [] if name in known else get_close_matches(name, public, n=2, cutoff=_ALIKE)
        if near:
            return f"{message.rstrip('.')}. Did you mean {' or '.join(near)}?"
    return message


def _public_names() -> Iterable[tuple[str, str]]:
    for package in _PACKAGES:
        for name in import_module(f"lightning_dp.{package}").__all__:
            yield package, name


def _missing(name: str) -> MissingExtra | None:
    """Why a public name can't be chosen; None where it can."""
    for package, public in _public_names():
        if public == name:
            try:
                getattr(import_module(f"lightning_dp.{package}"), name)
            except MissingExtra as error:
                return error
    return None
