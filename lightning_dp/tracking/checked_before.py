"""Which run folders were checked before, so that thousands of them need not be checked again at each report.

What is kept is no figure: only that a privacy report, a configuration and a checkpoint passed the checks of
`account.py`, under a hash of the first two, of what the file system says of the third, and of the code that
checks. ε is always read from the folder, and always compared with the ledger. The file lies in the user's
cache folder, for its owner alone, because a run folder may come from somebody else; one that is damaged, or
that others could have written, is taken for empty.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_dp.data_files import cache_folder
from lightning_dp.privacy import accounting, claim
from lightning_dp.privacy.ledger.snapshot import replace_quietly
from lightning_dp.privacy.report import REPORT_NAME
from lightning_dp.tracking.layout import CHECKPOINT

_MOST = 100_000  # that are kept, the newest
_MOST_BYTES = 8 * 2**20  # of a file that is hashed


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What the checks of a folder's own files said.

    Attributes:
        checks: as in `Account`, without the ledger.
        ledger: that config.yaml names; None for the usual one.
    """

    checks: dict[str, str]
    ledger: str | None


class CheckedBefore:
    """The folders that passed; `save` keeps what is new.

    Args:
        path: of the file; None takes the user's cache folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_folder() / "checked_runs.json"
        self._known = self._read()
        self._is_new = False

    def find(self, key: str | None) -> Passed | None:
        """What the checks of these files said; None where they are new."""
        known = None if key is None else self._known.get(key)
        return None if known is None else Passed(checks=known[0], ledger=known[1])

    def keep(self, key: str | None, passed: Passed) -> None:
        """Remember that these files passed."""
        if key is not None:
            self._known[key] = [passed.checks, passed.ledger]
            self._is_new = True

    def save(self) -> None:
        """Write what is new; where that can't be, the next one checks again."""
        if self._is_new:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError:
                return
            kept = dict(list(self._known.items())[-_MOST:])
            replace_quietly(self._path, json.dumps(kept, separators=(",", ":")))
            self._is_new = False

    def _read(self) -> dict[str, list[Any]]:
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if os.name == "posix" and (about.st_uid != os.getuid() or about.st_mode & 0o022):
                    return {}
                content = json.loads(file.read())
            sound = isinstance(content, dict) and all(map(_is_entry, content.values()))
            return content if sound else {}
        except (OSError, ValueError, RecursionError):
            return {}


def key_of(folder: Path, *, report: bytes) -> str | None:
    """What the checks of a folder depend on; None where that can't be said.

    Args:
        folder: of the run.
        report: content of its privacy.json, which was read.
    """
    digest = hashlib.sha256(_code())
    try:
        config = folder / "config.yaml"
        parts = [report, b""]
        if config.is_file():
            if config.stat().st_size > _MOST_BYTES:
                return None
            parts[1] = b"config" + config.read_bytes()
        checkpoint = folder / CHECKPOINT
        if checkpoint.exists():
            about = checkpoint.stat()
            parts.append(
                # The time of the last change of any kind, too, which no program can set.
                f"{checkpoint.resolve()} {about.st_ino} {about.st_size} {about.st_mtime_ns} "
                f"{about.st_ctime_ns}".encode()
            )
    except OSError:
        return None
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def read_report_bytes(folder: Path) -> bytes:
    """Content of privacy.json; nothing where there is none, or one too large to be a report."""
    path = folder / REPORT_NAME
    try:
        return path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    except OSError:
        return b""


@cache
def _code() -> bytes:
    """A hash of what checks: where that changes, everything is checked again."""
    digest = hashlib.sha256()
    for path in (Path(__file__).with_name("account.py"), Path(accounting.__file__), Path(claim.__file__)):
        digest.update(path.read_bytes())
    for name in ("dp-accounting", "numpy", "scipy", "torch"):
        digest.update(f"{name}=={version(name)}\n".encode())
    return digest.digest()


def _is_entry(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], dict):
        return False
    checks, ledger = value
    texts = [*checks.values(), *([] if ledger is None else [ledger])]
    return all(isinstance(text, str) for text in texts) and "mechanisms" in checks
