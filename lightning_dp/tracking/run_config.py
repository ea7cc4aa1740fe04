"""What a run folder's config.yaml says, read as data.

A run folder may come from somebody else, and a class path in a configuration is a name to import and call.
Of a run folder only classes of this package, of torch's optimizers and schedulers, of diffusers' schedulers
and of Lightning are made; others need the user's word, `--trust` or LIGHTNING_DP_TRUST=1. Recipes that a user
writes or chooses are no run folders, and are not asked about.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lightning_dp.extras import MissingExtra, needed_by

TRUST = "LIGHTNING_DP_TRUST"
"""Environment variable; 1 lets run folders choose any class that is installed."""

_PACKAGES = ("lightning_dp.", "torch.optim.", "lightning.pytorch.", "lightning.fabric.", "diffusers.")
_HOMES = ("lightning_dp.", "torch.optim.", "lightning.pytorch.", "lightning.fabric.", "diffusers.schedulers.")
_LOCAL_LOGGERS = ("CSVLogger", "TensorBoardLogger")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_REFERENCE = re.compile(r"\$\{[\w.\[\]-]+\}")
_OF_FILES = {
    "bmp",
    "ckpt",
    "csv",
    "gif",
    "gz",
    "jpeg",
    "jpg",
    "json",
    "jsonl",
    "npy",
    "npz",
    "parquet",
    "png",
}
_OF_FILES |= {"safetensors", "sqlite", "tar", "tif", "tiff", "txt", "webp", "yaml", "yml", "zip"}
_MAX_BYTES = 8 * 2**20
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 100
_MAX_INCLUDED = 64 * 2**10
_BESIDE = ("privacy.json", "results.json", "environment.json", "checkpoints")


def read_run_config(folder: Path, *, trust: bool = False) -> dict[str, Any]:
    """The configuration that a run was made by.

    Args:
        folder: of the run.
        trust: whether it may ask for classes of other packages, which run their code.

    Raises:
        ValueError: the folder holds none, it is damaged, or it asks for classes of other packages.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{folder} is no run folder: config.yaml, its configuration, is missing; name a folder that "
            "'lightning-dp fit' or 'lightning-dp evolve' has finished."
        )
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings but a {type(config).__name__}: put back a copy.")
    if not trust:
        trusted_classes(config, where=path)
    return config


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values, which are no more than the file has room for.

    Raises:
        ValueError: it is no YAML, or would fill the memory; the file is named and nothing in it is quoted.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, and no configuration is so large.")
    try:
        text = path.read_text(encoding="utf-8")
        if _depth(text) > _MAX_DEPTH:
            raise ValueError(f"{path} is nested more than {_MAX_DEPTH} deep, and no configuration is.")
        content = yaml.load(text, Loader=_LOADER)
        if _size(content, {}) > _MAX_VALUES:
            raise ValueError(f"{path} repeats itself by aliases to more than {_MAX_VALUES} values.")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line} is no YAML ({type(error).__name__}): put back a copy.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}): put back a copy.") from error
    return content


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _depth(text: str) -> int:
    """How deep a text is nested, found without nesting: beyond that a loader in C crashes."""
    depth = deepest = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if (deepest := max(depth, deepest)) > _MAX_DEPTH:
                return deepest
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return deepest


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are when every alias is written out."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAX_VALUES + 1  # of a value that holds itself
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in inside)
    return known[id(value)]


# --- classes ----------------------------------------------------------------------------------------


def trusted_classes(config: Any, *, where: Path | str) -> None:
    """Refuse a configuration of a run folder that asks for code of anybody else; nothing of it is imported.

    Args:
        config: the values, or the settings that a checkpoint keeps of its model.
        where: their file, for the message.

    Raises:
        ValueError: it names such a class or function, reads one out of the environment or another file, or
            wants checkpoints unpickled with their code.
    """
    if os.environ.get(TRUST) == "1":
        return
    for key, value in _leaves(config):
        last = key.rpartition(".")[2]
        if last == "weights_only" and value is False:
            raise ValueError(
                f"{where} has {key} = false, by which a checkpoint may run code: checkpoints are read by "
                "their weights only; leave it out."
            )
        if not isinstance(value, str):
            continue
        if last == "_instantiator":
            trusted = value == "lightning.pytorch.cli.instantiate_module"
        elif "${" in value and (last == "class_path" or not _REFERENCE.fullmatch(value)):
            trusted = False
        elif last == "class_path" or _may_be_imported(value):
            trusted = "." not in value or _is_trusted(value)
        else:
            trusted = not _brings_classes(value, beside=Path(where).parent)
        if not trusted:
            raise ValueError(
                f"{where} has {key} = {value[:80]!r}, which is no class of this package, torch.optim, "
                "diffusers' schedulers or Lightning: a received run folder may run no code of others; look "
                f"at it, and say --trust (or {TRUST}=1) if you want it run."
            )


def trusted_configs(argv: Sequence[str]) -> None:
    """`trusted_classes` of each configuration on a command line that is a run folder's.

    Raises:
        ValueError: as there.
    """
    for argument in argv:
        path = Path(argument.partition("=")[2] if argument.startswith("--") else argument)
        try:
            of_run = path.suffix in (".yaml", ".yml") and path.is_file() and _is_of_run(path)
        except (OSError, ValueError):  # no name of a file
            continue
        if of_run:
            trusted_classes(read_yaml(path), where=path)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option `--trust` of commands that read run folders."""
    parser.add_argument(
        "--trust",
        action=_Trust,
        nargs=0,
        help="let the run folder choose any class that is installed, which runs its code; without this only "
        f"classes of this package, torch's optimizers and Lightning are made (also by {TRUST}=1)",
    )


class _Trust(argparse.Action):
    def __call__(self, *_: Any, **__: Any) -> None:
        os.environ[TRUST] = "1"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no list or mapping, with where it stands."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}[{number}]")
    else:
        yield key, value


def _may_be_imported(value: str) -> bool:
    """Whether a parser could take a text for the name of a function or a class."""
    if not _DOTTED.fullmatch(value) or value.rpartition(".")[2].lower() in _OF_FILES:
        return False
    top = value.partition(".")[0]
    if top in sys.modules or top in sys.stdlib_module_names:
        return True
    try:
        return find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _is_trusted(name: str) -> bool:
    """Whether a class path leads to a class that is at home in one of the packages.

    Its beginning alone says nothing: `lightning_dp.cli.os.system` begins well.
    """
    if not name.startswith(_PACKAGES) or any(part.startswith("_") for part in name.split(".")):
        return False
    found = _found(name)
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(_HOMES):
        return False
    return ".loggers." not in f"{found.__module__}." or found.__name__ in _LOCAL_LOGGERS


def _found(name: str) -> Any:
    """What a parser would get by a name that begins in a trusted package; None where there is nothing.

    Not `pydoc.locate`, which overlooks modules that their package hides, as torch.optim does its own.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            with needed_by(name):
                found: Any = import_module(".".join(parts[:end]))
        except MissingExtra:
            raise
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def _brings_classes(value: str, *, beside: Path) -> bool:
    """Whether a text is a file that a parser would read as a part of the configuration."""
    for path in {Path(value), beside / value}:
        try:
            if not path.is_file():
                continue
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES)
        except (OSError, ValueError):
            continue
        if b"\0" in content:  # a checkpoint, an archive: YAML has no such character, so no parser reads on
            continue
        if b"class_path" in content:
            return True
        if len(content) <= _MAX_INCLUDED:
            text = content.decode(errors="replace").strip().strip("'\"")
            if _may_be_imported(text) and not _is_trusted(text):
                return True
    return False


def _is_of_run(path: Path) -> bool:
    return path.name == "config.yaml" or any((path.parent / name).exists() for name in _BESIDE)
