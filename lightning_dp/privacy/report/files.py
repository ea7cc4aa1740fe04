"""`privacy.json` in the run folder: what a run may claim, readable at any moment of it."""

import json
import math
import os
from pathlib import Path
from typing import Any

REPORT_NAME = "privacy.json"


def write_privacy_report(folder: Path, report: dict[str, Any]) -> None:
    """Replace the report as a whole; a reader never sees half of one. ∞ is written as "inf"."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_text(folder / REPORT_NAME, json.dumps(json_ready(report), indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Put `text` where `path` is, as a whole and for good: a reader sees the old file or the new one.

    Once this returns, the new one outlives a crash of the machine. On a full disk the old one stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_privacy_report(folder: Path) -> dict[str, Any]:
    """The report of a run folder as it stands there, unchecked; `{}` where there is none.

    Whoever shows an ε takes `tracking.account.read_account`, which believes nothing.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / REPORT_NAME
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}), so no ε can be stated: resume the run, which writes it anew, or "
            "put back a copy"
        ) from error
    if not isinstance(report, dict):
        raise ValueError(
            f"{path} holds a {type(report).__name__} and not the account of a run, so no ε can be stated: "
            "resume the run, which writes it anew, or put back a copy"
        )
    return report


def json_ready(value: Any) -> Any:
    """The value with every ∞ as "inf" or "-inf", which JSON has no number for."""
    if isinstance(value, dict):
        return {name: json_ready(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
