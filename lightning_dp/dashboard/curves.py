"""Curves of `metrics.csv`, thinned so that a page with many runs stays light."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_POINTS = 400


def read_curves(path: Path, *, max_points: int = MAX_POINTS) -> dict[str, dict[str, Any]]:
    """Every column with at least two finite points.

    Long curves are thinned evenly; the points that stay are the file's own, and the last one stays.

    Args:
        path: a metrics.csv with a `step` column; a missing file has no curves.
        max_points: ≥ 2, points to keep of a column.

    Raises:
        ValueError: it is damaged.

    Returns:
        name → `step`, `value` (lists of equal length) and `logged`, the number of points in the file.
    """
    if not path.is_file():
        return {}
    points: dict[str, list[tuple[int, float]]] = {}
    for line in _lines(path):
        step = _number(line.pop("step", ""))
        if step is None:
            continue
        for name, text in line.items():
            if name in (None, "epoch") or not text:
                continue
            value = _number(text)
            if value is not None:
                points.setdefault(name, []).append((int(step), value))
    curves = {}
    for name, found in sorted(points.items()):
        if len(found) < 2:
            continue
        stride = math.ceil((len(found) - 1) / (max_points - 1))
        kept = found[::stride]
        if kept[-1] is not found[-1]:
            kept.append(found[-1])
        curves[name] = {
            "step": [step for step, _ in kept],
            "value": [value for _, value in kept],
            "logged": len(found),
        }
    return curves


def _lines(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is damaged ({type(error).__name__})") from error


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
