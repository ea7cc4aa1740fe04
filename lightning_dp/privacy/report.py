"""`privacy.json` in the run folder: what a run may claim, readable at any moment of it."""

import json
import math
import os
from pathlib import Path
from typing import Any

REPORT_NAME = "privacy.json"


def write_privacy_report(folder: Path, report: dict[str, Any]) -> None:
    """Replace the report as a whole; a reader never sees half of one. ∞ is written as "inf"."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / REPORT_NAME, json.dumps(json_ready(report), indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Put `text` where `path` is, as a whole: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def read_privacy_report(folder: Path) -> dict[str, Any]:
    """The report of a run folder; `{}` where there is none."""
    path = folder / REPORT_NAME
    return json.loads(path.read_text()) if path.exists() else {}


def json_ready(value: Any) -> Any:
    """The value with every ∞ as "inf" or "-inf", which JSON has no number for."""
    if isinstance(value, dict):
        return {name: json_ready(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
