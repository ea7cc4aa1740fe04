"""`privacy.json` in the run folder: what a run may claim, readable at any moment of it."""

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

REPORT_NAME = "privacy.json"


def write_privacy_report(trainer: Trainer, report: dict[str, Any]) -> None:
    """Replace the report as a whole; a reader never sees half of one. ∞ is written as "inf"."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if not trainer.is_global_zero:
        return
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
