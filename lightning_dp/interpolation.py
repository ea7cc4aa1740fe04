"""References inside of a configuration: `T_max: ${trainer.max_steps}`, `root: ${oc.env:DATA}`.

OmegaConf's syntax, resolved when all files and overrides have been read, so that a reference follows what the
command line says last. A reference starts at the top of the configuration (`trainer`, `model`, `data`, …), or
with dots at the place where it stands. The parser keeps all this under the subcommand's name, and OmegaConf
looks from there: `trainer.max_steps` is read as `fit.trainer.max_steps`.
"""

import inspect
import re
from collections.abc import Iterable
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from omegaconf.errors import OmegaConfBaseException

MODE = "omegaconf+"  # jsonargparse's name for a parser that resolves references after everything is parsed

# A field's name alone: neither a resolver's (${oc.env:HOME}) nor relative (${..field}).
_ABSOLUTE = re.compile(r"\$\{\s*([A-Za-z_][\w.\[\]-]*)\s*\}")


def lengthen(value: Any, *, subcommand: str) -> Any:
    """A value as YAML reads it, with its references beginning at the subcommand; twice is as once.

    >>> lengthen({"T_max": "${trainer.max_steps}"}, subcommand="fit")
    {'T_max': '${fit.trainer.max_steps}'}
    >>> lengthen("${fit.trainer.max_steps} of ${oc.env:HOME}", subcommand="fit")
    '${fit.trainer.max_steps} of ${oc.env:HOME}'
    """
    if isinstance(value, dict):
        return {key: lengthen(item, subcommand=subcommand) for key, item in value.items()}
    if isinstance(value, list):
        return [lengthen(item, subcommand=subcommand) for item in value]
    if isinstance(value, str):
        return _ABSOLUTE.sub(lambda found: _below(found[1], subcommand), value)
    return value


def read_below(subcommand: str | None) -> None:
    """From now on parsers in `MODE` read files and values so that references begin at this subcommand.

    Args:
        subcommand: `fit`, …; None for a parser that has none.
    """
    read = get_loader("yaml")

    def load(text: str) -> Any:
        value = read(text)
        return value if subcommand is None else lengthen(value, subcommand=subcommand)

    set_loader(MODE, load, exceptions=(yaml.YAMLError,))  # what is no YAML is a word


def open_link_targets(part: Any, names: Iterable[str]) -> None:
    """Leave a place for what links fill in: resolving a reference drops places that are still empty.

    Args:
        part: the configuration of one class, its class_path and init_args; or None.
        names: of constructor arguments that links may fill in; those the class doesn't have are left alone.
    """
    if part is None:
        return
    kind = locate(part.class_path)
    assert isinstance(kind, type)  # the parser has imported it
    accepted = inspect.signature(kind).parameters
    for name in names:
        if name in accepted and name not in part.init_args:
            part.init_args[name] = None


def explained(error: OmegaConfBaseException, *, subcommand: str = "") -> str:
    """One sentence for a reference that leads nowhere: where it stands, and what is missing."""
    prefix = f"{subcommand}."
    place = (error.full_key or "").removeprefix(prefix)
    cause = str(error).splitlines()[0].replace(f"'{prefix}", "'")
    ways = "${trainer.max_steps}, ${oc.env:NAME} or ${oc.env:NAME,default}"
    return f"{place}: {cause}; a reference is {ways}"


def _below(name: str, subcommand: str) -> str:
    begins = name == subcommand or name.startswith(f"{subcommand}.")
    return f"${{{name}}}" if begins else f"${{{subcommand}.{name}}}"
