"""Reads finished runs back: what `report`, the demo and dashboards compare.

Everything comes from the run folders' `results.json`; nothing is computed from checkpoints or data.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_dp.tracking.figures import quality_against_epsilon


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison: a method at one ε on one data set, over its seeds.

    Attributes:
        dataset, method: names.
        epsilon: per unit; inf without privacy, 0 for a baseline that learnt nothing from the data.
        unit: the privacy unit, or "".
        epsilon_of_event: ε per event, or None where undefined.
        runs: number of runs averaged.
        mean, se: metric → mean and standard error (NaN for one run).
    """

    dataset: str
    method: str
    epsilon: float
    unit: str
    epsilon_of_event: float | None
    runs: int
    mean: dict[str, float]
    se: dict[str, float]


def read_results(folders: list[Path]) -> list[dict[str, Any]]:
    """Every `results.json` below the folders, with its folder.

    Raises:
        ValueError: a folder does not exist, or none holds a result.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a run folder or one that holds runs")
        for path in sorted(folder.rglob("results.json")):
            result = json.loads(path.read_text())
            result["folder"] = path.parent
            found.append(result)
    if not found:
        names = ", ".join(map(str, folders))
        raise ValueError(f"no results.json below {names}: 'lightning-dp fit' and 'test' write one per run")
    return found


def compare(results: list[dict[str, Any]]) -> list[Row]:
    """Average runs of the same data set, method and planned ε; baselines come last.

    Methods are compared at equal ε only, so runs whose ε differ in the third digit stay apart.
    """
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    baselines: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    for result in results:
        epsilon = _number(result["epsilon"])
        event = result.get("epsilon_of_unit", {}).get("event")
        key = (result["dataset"], _rounded(epsilon), result.get("unit") or "", result["method"])
        own: dict[str, float] = {}
        others: dict[str, dict[str, float]] = defaultdict(dict)
        for name, value in result["metrics"].items():
            if name.startswith("baseline/"):
                _, baseline, metric = name.split("/")
                others[baseline][metric] = value
            elif name.startswith("test/") and name != "test/epsilon":
                own[name.removeprefix("test/")] = value
        groups[key].append({"metrics": own, "epsilon": epsilon, "event": _number(event)})
        for baseline, values in others.items():
            baselines[result["dataset"], baseline].append(values)
    rows = [
        _row(
            dataset=dataset,
            method=method,
            epsilon=max(run["epsilon"] for run in group),
            unit=unit,
            event=max((run["event"] for run in group if run["event"] is not None), default=None),
            metrics=[run["metrics"] for run in group],
        )
        for (dataset, _, unit, method), group in sorted(groups.items(), key=lambda item: item[0])
    ]
    for (dataset, baseline), scores in sorted(baselines.items()):
        name = baseline.replace("_", " ")
        rows.append(_row(dataset=dataset, method=name, epsilon=0.0, unit="", event=None, metrics=scores[:1]))
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as one Markdown table per data set."""
    tables = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        metrics = sorted({name for row in own for name in row.mean}, key=_metric_order)
        units = {row.unit for row in own if row.unit}
        unit = f" per {units.pop()}" if len(units) == 1 else ""
        header = ["method", f"ε{unit}", "ε per event", "runs", *(name.upper() for name in metrics)]
        cells = [
            [
                row.method,
                _epsilon_text(row.epsilon, baseline=not row.unit and row.epsilon == 0),
                "" if not row.unit else _epsilon_text(row.epsilon_of_event),
                str(row.runs),
                *(_with_error(row, name) for name in metrics),
            ]
            for row in own
        ]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]

        def line(parts: list[str], widths: list[int] = widths) -> str:
            return (
                "| " + " | ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)) + " |"
            )

        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        tables.append("\n".join([f"### {dataset}", "", line(header), rule, *map(line, cells)]))
    return "\n\n".join(tables)


def figure(rows: list[Row], *, metric: str) -> Figure:
    """`metric` against ε, one line per method with error bars, baselines as horizontal lines.

    A baseline of more than 1.3 times the largest result is left out: it would squeeze the rest.

    Raises:
        ValueError: the rows are of several data sets, or none has the metric.
    """
    datasets = sorted({row.dataset for row in rows})
    if len(datasets) != 1:
        raise ValueError(f"one figure shows one data set, and these runs are of {', '.join(datasets)}")
    own = [row for row in rows if metric in row.mean]
    units = {row.unit for row in own if row.unit}
    largest = max((row.mean[metric] for row in own if row.epsilon > 0), default=math.inf)
    return quality_against_epsilon(
        [
            {
                "method": row.method,
                "epsilon": _rounded(row.epsilon),
                "mean": row.mean[metric],
                "se": 0.0 if math.isnan(row.se[metric]) else row.se[metric],
            }
            for row in own
            if row.epsilon > 0
        ],
        metric=metric.upper() if metric in ("mse", "mae", "crps") else metric,
        baselines={
            row.method: row.mean[metric]
            for row in own
            if row.epsilon == 0 and row.mean[metric] <= 1.3 * largest
        },
        unit_name=units.pop() if len(units) == 1 else "",
        title=datasets[0],
    )


def _row(
    *,
    dataset: str,
    method: str,
    epsilon: float,
    unit: str,
    event: float | None,
    metrics: list[dict[str, float]],
) -> Row:
    names = sorted(set.intersection(*(set(m) for m in metrics)))
    values = {name: np.array([m[name] for m in metrics]) for name in names}
    n = len(metrics)
    return Row(
        dataset=dataset,
        method=method,
        epsilon=epsilon,
        unit=unit,
        epsilon_of_event=event,
        runs=n,
        mean={name: float(v.mean()) for name, v in values.items()},
        se={name: float(v.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan for name, v in values.items()},
    )


def _number(value: Any) -> Any:
    """JSON has no infinity: reports write it as text."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return math.nan


def _rounded(epsilon: float) -> float:
    return epsilon if not math.isfinite(epsilon) else float(f"{epsilon:.3g}")


def _epsilon_text(epsilon: float | None, *, baseline: bool = False) -> str:
    if baseline:
        return "≈ 0"
    if epsilon is None:
        return "undefined"
    if math.isnan(epsilon):
        return "unknown"
    return "∞" if math.isinf(epsilon) else f"{epsilon:.3g}"


def _with_error(row: Row, name: str) -> str:
    if name not in row.mean:
        return ""
    error = row.se[name]
    return f"{row.mean[name]:.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")


def _metric_order(name: str) -> tuple[int, str]:
    known = ["mse", "mae", "crps"]
    return (known.index(name) if name in known else len(known), name)
