"""The command of a trial: the sweep's own, with W&B's macros filled in exactly as a W&B agent does it."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_dp.sweeps.sweep import Sweep

_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def build_command(sweep: Sweep, arguments: Mapping[str, Any]) -> list[str]:
    """The command for these arguments, printed as Python prints them; the interpreter is this one."""
    filled = {
        "env": ["/usr/bin/env"],
        "interpreter": [sys.executable],
        "program": [str(sweep.program)],
        "args": [f"--{name}={value}" for name, value in arguments.items()],
        "args_no_hyphens": [f"{name}={value}" for name, value in arguments.items()],
        "args_no_equals": [part for name, value in arguments.items() for part in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in arguments.items()
            if value is not False
        ],
        "args_json": [json.dumps(arguments)],
    }
    command: list[str] = []
    for part in sweep.command:
        known = _ENVIRONMENT.sub(lambda found: os.environ.get(found[1], found[1]), part)
        command += filled[known[2:-1]] if known.startswith("${") and known.endswith("}") else [known]
    return command


def fit_arguments(command: Sequence[str]) -> list[str] | None:
    """What follows `lightning-dp` in a command that fits, or None where a trial is another program."""
    own = own_arguments(command)
    return own if own and own[0] == "fit" else None


def own_arguments(command: Sequence[str]) -> list[str] | None:
    """What follows `lightning-dp`, or None where a trial is nothing of this package."""
    for place, part in enumerate(command[:-1]):
        module = list(command[max(0, place - 1) : place + 1]) == ["-m", "lightning_dp"]
        if module or part.rsplit("/", 1)[-1] == "lightning-dp":
            return list(command[place + 1 :])
    return None
