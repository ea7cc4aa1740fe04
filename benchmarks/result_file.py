"""The result files under docs/results: what every study writes in one form."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_dp.privacy.report import json_ready, read_privacy_report
from lightning_dp.tracking.results import Row, RunResult, compare, round_epsilon, series_names


def rows_of_runs(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """One row per data set, task, method, ε and metric: mean and standard error over seeds."""
    told: dict[tuple, RunResult] = {}
    for result, method in zip(results, series_names(results), strict=True):
        told.setdefault((result.dataset, result.task, method, round_epsilon(result.epsilon)), result)
    written = []
    for row in compare(results):
        run = told.get((row.dataset, row.task, row.method, round_epsilon(row.epsilon)))
        for metric, mean in row.mean.items():
            written.append({**_facts(row, run), "metric": metric, "mean": mean, "se": _error(row, metric)})
    return written


def _facts(row: Row, run: RunResult | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "dataset": row.dataset,
        "task": row.task,
        "method": row.method,
        "unit": row.unit,
        "epsilon": row.epsilon,
        "epsilon_of_event": row.epsilon_of_event,
        "seeds": sorted(seed for seed in row.seeds if seed is not None),
    }
    if run is not None:
        report = read_privacy_report(run.folder)
        facts |= {
            "delta": run.delta,
            "noise_multiplier": report.get("noise_multiplier"),
            "steps": report.get("steps_charged"),
            "trainable_parameters": run.facts.get("trainable_parameters"),
        }
    return facts


def _error(row: Row, metric: str) -> float | None:
    return row.se[metric] if row.runs > 1 else None


def write(path: Path, *, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write `path`: the command that made it, commit, machine, date, rows and whatever else there is."""
    commit = ["git", "describe", "--always", "--dirty"]
    content = {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} " + " ".join(sys.argv[1:]),
        "commit": subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread per run, CPU",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **more,
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json_ready(content), indent=1, ensure_ascii=False) + "\n")
