"""ρ_emp and ρ_cond: how much smaller one run's large unit gradients are than another's (arXiv 2602.22610).

Numbers of two `diagnostics.json` in, ratios out. Ratios of raw private statistics are such statistics.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_dp.tracking.tables import Table

FILE = "diagnostics.json"
NAMES = {"all": "ρ_emp", "cond": "ρ_cond", "other": "ρ_other"}
"""Ratios by partition: all parameters, θ_cond, θ_other. The third is ours, for comparison."""
_LEVELS = ("p95", "p99")


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One quantile of unit gradients' norms in the second run over the same in the first.

    Attributes:
        partition: all, cond or other.
        level: of the quantile, p95 or p99.
        pooled: over the units of all observed steps together.
        steps: how many steps both runs observed where the first run's quantile is above 0.
        middle, low, high: median and 10 and 90 % quantiles of the ratio over these steps.
    """

    partition: str
    level: str
    pooled: float
    steps: int
    middle: float
    low: float
    high: float


def read_diagnostics(folder: Path) -> dict[str, Any]:
    """`diagnostics.json` of a run folder.

    Raises:
        ValueError: it is not there, or was written without θ_cond or its paths.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: run the fit with --config conf/controls/diagnostics.yaml on top, "
            "which writes it."
        )
    report = json.loads(path.read_text())
    if not report.get("paths") or "cond" not in report["partitions"]:
        raise ValueError(
            f"{path} has no paths of a condition: ρ_cond is that of a net that is steered, and of a run by "
            "this version; repeat the run."
        )
    return report


def gradient_ratios(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Ratio]:
    """ρ of each partition and level, the second run over the first: below 1 where its gradients are smaller.

    Raises:
        ValueError: the two split their parameters differently, or observed no step in common.
    """
    sizes = [{part: own["parameters"] for part, own in one["partitions"].items()} for one in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the runs have {sizes[0]} and {sizes[1]} parameters in their partitions, but ρ compares the "
            "same θ_cond: take two runs of one net."
        )
    common = sorted(set(first["steps"]["step"]) & set(second["steps"]["step"]))
    if not common:
        raise ValueError(
            "the runs observed no step in common, so that ρ would compare early with late gradients: use the "
            "same every_n_steps."
        )
    found = []
    for partition in (name for name in NAMES if name in sizes[0]):
        for level in _LEVELS:
            steps, over_steps = ratio_by_step(first, second, partition=partition, level=level)
            whole = [one["partitions"][partition]["quantiles"][level] for one in (first, second)]
            if not steps or not whole[0] > 0:
                raise ValueError(
                    f"the first run's {level} of {partition} is 0 at all observed steps, so that no ratio to "
                    "it is defined: observe later steps."
                )
            low, middle, high = np.quantile(over_steps, (0.1, 0.5, 0.9)).tolist()
            found.append(
                Ratio(
                    partition=partition,
                    level=level,
                    pooled=whole[1] / whole[0],
                    steps=len(steps),
                    middle=middle,
                    low=low,
                    high=high,
                )
            )
    return found


def ratio_by_step(
    first: Mapping[str, Any], second: Mapping[str, Any], *, partition: str, level: str
) -> tuple[list[int], np.ndarray]:
    """The steps that both runs observed with a quantile above 0, and the ratio at each, (S,).

    Before a first step that starts behind a zero-initialised layer, θ_cond has no gradient in either.
    """
    at = [
        dict(zip(one["steps"]["step"], one["steps"][partition][level], strict=True))
        for one in (first, second)
    ]
    steps = sorted(step for step in at[0].keys() & at[1].keys() if at[0][step] > 0)
    return steps, np.array([at[1][step] / at[0][step] for step in steps])


def paths_of(*reports: Mapping[str, Any]) -> list[str]:
    """The paths of the condition in all reports, θ_other last."""
    found = dict.fromkeys(path for report in reports for path in report["paths"])
    return [*(path for path in found if path != "other"), "other"]


def ratio_tables(reports: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """ρ of two runs, and each path's share of ‖g‖² beside it.

    Args:
        reports: two contents of `diagnostics.json` by the name of the run, the one that is divided by first.
    """
    (one, first), (other, second) = reports.items()
    private = "private" in (first["mode"], second["mode"])
    note = ("raw private statistics: no ε covers them",) if private else ()
    ratios = Table(
        title=f"Norms of unit gradients, {other} over {one}",
        header=["", "quantile", "ratio", "over steps: median", "10 to 90 %", "steps"],
        cells=[
            [
                NAMES[r.partition],
                r.level.replace("p", "") + " %",
                f"{r.pooled:.3f}",
                f"{r.middle:.3f}",
                f"{r.low:.3f} to {r.high:.3f}",
                str(r.steps),
            ]
            for r in gradient_ratios(first, second)
        ],
        notes=note,
    )
    shares = Table(
        title="Share of ‖g‖² by path of the condition",
        header=["path", "parameters", *reports],
        cells=[
            [
                path,
                f"{first['paths'].get(path, second['paths'].get(path))['parameters']:,}",
                *(
                    f"{100 * r['paths'][path]['mean']:.1f} %" if path in r["paths"] else ""
                    for r in (first, second)
                ),
            ]
            for path in paths_of(first, second)
        ],
        notes=note,
    )
    return [ratios, shares]
