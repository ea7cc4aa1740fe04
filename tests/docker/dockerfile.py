"""Reads a Dockerfile: instructions in order, comments gone, continued lines joined."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction; `flags` are its `--name=value` words, `rest` is what follows them."""

    name: str
    flags: dict[str, str]
    rest: str


def read_dockerfile(path: Path) -> list[Instruction]:
    """Every instruction; a heredoc is not understood."""
    kept = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(kept)).splitlines():
        name, _, rest = line.partition(" ")
        flags = {}
        while flag := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        found.append(Instruction(name, flags, rest))
    return found
