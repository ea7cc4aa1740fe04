"""`privacy.json` in the run folder: what a run may claim, readable at any moment of it."""

import json
import os
from pathlib import Path
from typing import Any

REPORT_NAME = "privacy.json"


def write_privacy_report(folder: Path, report: dict[str, Any]) -> None:
    """Replace the report as a whole; a reader never sees half of one. ∞ is written as "inf"."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{REPORT_NAME}.{os.getpid()}"
    readable = {name: _readable(value) for name, value in report.items()}
    temporary.write_text(json.dumps(readable, indent=2, allow_nan=False) + "\n")
    temporary.replace(folder / REPORT_NAME)


def read_privacy_report(folder: Path) -> dict[str, Any]:
    """The report of a run folder; `{}` where there is none."""
    path = folder / REPORT_NAME
    return json.loads(path.read_text()) if path.exists() else {}


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _readable(item) for name, item in value.items()}
    return "inf" if value == float("inf") else value
