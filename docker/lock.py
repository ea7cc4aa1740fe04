"""Writes docker/requirements.txt: every package of the image at its version, with the hash of its file.

    python docker/lock.py          # with the Python of the image, 3.11 on Linux x86_64

pip itself chooses, from where it looks, by pyproject.toml and constraints.txt; it installs nothing.
To be run again whenever one of the two changes. What the hashes protect against, and what not:
docs/decisions/0011-hashes.md.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("timeseries", "images", "dashboard", "cluster")
LOCK = Path(__file__).with_name("requirements.txt")
_HEAD = """\
# Made by docker/lock.py: what the image installs, for Python 3.11 on Linux x86_64, each file by its hash.
"""


def requirements(extras: tuple[str, ...]) -> list[str]:
    """What pyproject.toml asks for with these extras, those of other extras resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = list(project["dependencies"])
    todo = list(extras)
    while todo:
        for text in project["optional-dependencies"][todo.pop()]:
            own = re.fullmatch(r"lightning-dp\[([\w,]+)\]", text)
            todo += own[1].split(",") if own else []
            found += [] if own else [text]
    return found


def main() -> None:
    """Ask pip what it would install, and write that down."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "-c", str(ROOT / "constraints.txt"), *requirements(EXTRAS)]
        subprocess.run(command, check=True)
        chosen = json.loads(report.read_text())["install"]
    lines = []
    for one in chosen:
        name, version = one["metadata"]["name"], one["metadata"]["version"]
        digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    LOCK.write_text(_HEAD + "".join(sorted(lines, key=str.lower)))


if __name__ == "__main__":
    main()
