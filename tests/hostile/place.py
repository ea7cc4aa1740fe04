"""Where a hostile input is tried: a folder, a canary that nothing may create, and the ways in."""

import contextlib
import io
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECRET = "HIV+ see Dr Müller"
"""What private cells hold here; no answer may quote it."""


@dataclass(frozen=True)
class Kind:
    """One hostile or broken input.

    Attributes:
        family: what it is given as.
        name: what is wrong with it.
        attack: hands it in, and returns the answer.
        answer: a part of it.
    """

    family: str
    name: str
    attack: Callable[["Place"], str]
    answer: str


class Place:
    """A folder of one attack. Programs of its `bin` come first, and each of them makes the canary."""

    def __init__(self, folder: Path, *, plotly: bool = True) -> None:
        self.folder = folder
        self.canary = folder / "canary"
        self.out = folder / "out"
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name in ("gs", "inkscape", "convert"):
            (programs / name).write_text(f"#!/bin/sh\ntouch '{self.canary}'\nexit 1\n")
            (programs / name).chmod(stat.S_IRWXU)
        self.programs = programs

    def pickle_bomb(self) -> Any:
        """An object that makes the canary when it is unpickled."""
        return _Bomb(f"touch '{self.canary}'")

    def command(self, *argv: str) -> str:
        """What a command says as it refuses; it has to."""
        from lightning_dp.cli import main

        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main(list(argv))
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
        assert code not in (0, None), f"{argv[0]} took it"
        lines = [line for line in said.getvalue().splitlines() if line.startswith("lightning-dp")]
        assert "Traceback" not in said.getvalue()
        return "\n".join(lines[:1])

    def leftovers(self) -> list[str]:
        """What was half written."""
        found = [path for path in self.folder.rglob(".*") if path.name != ".lightning-dp-dashboard"]
        if self.out.exists():
            found.append(self.out)
        return [str(path.relative_to(self.folder)) for path in found]


class _Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def refused(function: Callable[[], Any]) -> str:
    """The sentence with which a function refuses; it has to."""
    from lightning_dp.privacy.ledger import LedgerError

    try:
        function()
    except (ValueError, LedgerError) as error:
        return str(error)
    raise AssertionError("it was taken")


def write_over(folder: Path, source: Path) -> Path:
    """A copy of a folder."""
    return Path(shutil.copytree(source, folder))
