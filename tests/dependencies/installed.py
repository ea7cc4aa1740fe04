"""An environment with only some requirements installed: links to those of this one, and to what they require.

What is left out is not there at all: neither to import, nor to be asked for by `importlib.metadata`.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _distributions() -> dict[str, Distribution]:
    return {normal(one.metadata["Name"]): one for one in distributions()}


@cache
def _requires(name: str) -> list[Requirement]:
    home = _distributions().get(name)
    return [Requirement(text) for text in (home.requires or [])] if home else []


def required(extras: Iterable[str] = ()) -> list[Requirement]:
    """What pyproject.toml asks for, with some extras; extras of other extras are resolved."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, texts):
        if normal(requirement.name) == "lightning-dp":
            found += required(requirement.extras)
        else:
            found.append(requirement)
    return found


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """The names of all distributions that installing these brings."""
    todo = [(normal(one.name), frozenset(one.extras)) for one in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        name, extras = todo.pop()
        new = {(name, extra) for extra in extras | {""}} - seen
        seen |= new
        for requirement in _requires(name) if new else ():
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for _, extra in new):
                todo.append((normal(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def environment(folder: Path, *, extras: Sequence[str] = (), without: str = "") -> dict[str, str]:
    """Make it in an empty folder.

    Args:
        folder: for the links.
        extras: installed besides the core.
        without: a distribution that is left out nevertheless.

    Returns:
        The environment variables of a process in it, which is to be started as `command` says.
    """
    folder.mkdir(parents=True)
    (folder / "lightning_dp").symlink_to(ROOT / "lightning_dp")
    for name in closure(required(extras)) - {normal(without)}:
        home = _distributions().get(name)
        for file in (home.files or []) if home else []:
            top = file.parts[0]
            here = folder / top
            if top not in ("..", "__pycache__") and not here.is_symlink():
                here.symlink_to(Path(str(home.locate_file(top))))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
    return {**kept, "PYTHONPATH": str(folder)}


def run(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in such an environment; without `site`, which would add the usual packages."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
