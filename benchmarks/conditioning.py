"""Does bounded conditioning help at equal ε, where, and why? Runs the sweeps and writes the page's figures.

    LIGHTNING_DP_DATA=… python benchmarks/conditioning.py --workers 2 --json docs/results/conditioning.json

Every trial is the public command in a process of its own, by `lightning-dp sweep run`. What ended is not
repeated, so a study that was stopped goes on by the same command; --collect writes what there is.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from result_file import rows_of_runs, write

from lightning_dp.tracking.paired import PairedTest, holm, paired_tests
from lightning_dp.tracking.palette import FORECAST, GRID, INK, MUTED
from lightning_dp.tracking.results import RunResult, compare, epsilon_text, read_results, round_epsilon
from lightning_dp.tracking.tables import Table, comparison_tables, markdown, paired_table

ROOT = Path(__file__).parents[1]
REFERENCE = "vanilla"
_FASTER = ["run.wandb=disabled", "trainer.enable_progress_bar=false", "model.init_args.num_samples=20"]
_BLACKOUT = "{class_path: lightning_dp.timeseries.masks.BlackoutImputation, init_args: {ratio: 0.5}}"
SWEEPS: dict[str, tuple[str, list[str]]] = {
    "controls": ("controls.yaml", _FASTER),
    "smartmeter": ("smartmeter.yaml", [*_FASTER[:2], "data.init_args.task=null"]),
    "etth1_blackout": (
        "controls.yaml",
        [
            *_FASTER,
            f"data.init_args.task={_BLACKOUT}",
            "config=[conf/controls/vanilla.yaml, conf/controls/operator_tanh.yaml]",
        ],
    ),
    "smartmeter_blackout": (
        "smartmeter.yaml",
        [*_FASTER, f"data.init_args.task={_BLACKOUT}", "privacy.target_epsilon=8"],
    ),
}
_PUBLIC = ROOT / "runs" / "smartmeter_public"


METRICS = ("mse", "crps")
_SHOWN = {
    "clip_fraction": "clipped",
    "eta": "η",
    "tail_index_all": "Hill α",
    "tail_index_cond": "α of θ_cond",
    "tail_index_other": "α of θ_other",
    "p99_cond": "p99 of θ_cond",
    "p99_other": "p99 of θ_other",
    "cond_share_of_clipped": "θ_cond's share of ‖g‖², clipped units",
    "bias_over_gradient": "bias ÷ gradient",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--studies", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=int, default=1, help="trials at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what there is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.collect:
        _run(options.studies, seeds=options.seeds, workers=options.workers)
    results = read_results([f for name in options.studies if (f := ROOT / "runs" / name).is_dir()])
    tests = {metric: _against_reference(results, metric=metric) for metric in METRICS}
    tables = comparison_tables(compare(results), only=["mse", "mae", "crps"])
    tables += [paired_table(found, metric=metric) for metric, found in tests.items()]
    diagnostics = _diagnostics(results)
    print(markdown([*tables, _diagnostics_table(diagnostics)]))
    if options.json:
        paired = [{"metric": metric, **asdict(test)} for metric in METRICS for test in tests[metric]]
        write(options.json, rows=rows_of_runs(results), paired=paired, diagnostics=diagnostics)
        _figure(tests["mse"], results).savefig(options.json.with_suffix(".png"), dpi=110)


def _run(studies: list[str], *, seeds: list[int], workers: int) -> None:
    command = [sys.executable, "-m", "lightning_dp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if any(name.startswith("smartmeter") for name in studies) and not _PUBLIC.exists():
        public = [*command, "fit", "--config=conf/experiment/smartmeter_public.yaml", f"--run.dir={_PUBLIC}"]
        subprocess.run([*public, "--run.wandb=disabled"], check=True, cwd=ROOT, env=environment)
    for name in studies:
        file, overrides = SWEEPS[name]
        sweep = [*command, "sweep", "run", f"sweeps/{file}", f"--out=runs/{name}", f"--workers={workers}"]
        sweep += [f"--override={override}" for override in [*overrides, f"seed_everything={seeds}"]]
        subprocess.run(sweep, check=True, cwd=ROOT, env=environment)


def _against_reference(results: list[RunResult], *, metric: str) -> list[PairedTest]:
    """Every method minus the reference, p values corrected over these tests alone."""
    places: dict[tuple, list[RunResult]] = defaultdict(list)
    for result in results:
        places[result.dataset, result.task, round_epsilon(result.epsilon)].append(result)
    found = []
    for _, own in sorted(places.items()):
        for method in sorted({result.method for result in own} - {REFERENCE}):
            two = [result for result in own if result.method in (method, REFERENCE)]
            found += [_forwards(test) for test in paired_tests(two, metric=metric) if test.pairs > 1]
    p_t, p_wilcoxon = holm([test.p_t for test in found]), holm([test.p_wilcoxon for test in found])
    return [replace(test, p_t=t, p_wilcoxon=w) for test, t, w in zip(found, p_t, p_wilcoxon, strict=True)]


def _forwards(test: PairedTest) -> PairedTest:
    """The same test as a method minus the reference."""
    if test.first != REFERENCE:
        return test
    interval = None if test.interval is None else (-test.interval[1], -test.interval[0])
    return replace(test, first=test.second, second=REFERENCE, difference=-test.difference, interval=interval)


def _diagnostics(results: list[RunResult]) -> list[dict[str, Any]]:
    """Mean and standard error over seeds of what `diagnostics.json` says of each method's unit gradients."""
    groups: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    for result in results:
        path = result.folder / "diagnostics.json"
        if path.is_file():
            key = (result.dataset, result.task, round_epsilon(result.epsilon), result.method)
            groups[key].append(_figures(json.loads(path.read_text())))
    rows = []
    for (dataset, task, epsilon, method), runs in sorted(groups.items()):
        row: dict[str, Any] = {"dataset": dataset, "task": task, "epsilon": epsilon, "method": method}
        for name in runs[0]:
            values = np.array([run[name] for run in runs if not math.isnan(run.get(name, math.nan))])
            if len(values):
                error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
                row[name] = {"mean": float(values.mean()), "se": error, "seeds": len(values)}
        rows.append(row)
    return rows


def _diagnostics_table(rows: list[dict[str, Any]]) -> Table:
    names = {name: label for name, label in _SHOWN.items() if any(name in row for row in rows)}
    return Table(
        title="Unit gradients",
        header=["data set", "ε", "method", *names.values()],
        cells=[
            [
                f"{row['dataset']} · {row['task']}",
                epsilon_text(row["epsilon"]),
                row["method"],
                *(_cell(row.get(name)) for name in names),
            ]
            for row in rows
        ],
    )


def _cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['mean']:.3f}" + (f" ± {figure['se']:.3f}" if figure["se"] is not None else "")


def _figures(content: dict[str, Any]) -> dict[str, float]:
    """One run's figures: tails within steps (α of Hill), sizes, clipping, and what clipping shifts."""
    found = {"clip_fraction": content["clip_fraction"], "eta": content["eta"]["mean"]}
    for name, partition in content["partitions"].items():
        tail = partition["tail_index_within_steps"]
        found[f"tail_index_{name}"] = tail["alpha"] if tail else math.nan
        found[f"p99_{name}"] = partition["quantiles"]["p99"]
        found[f"tail_ratio_{name}"] = partition["tail_ratio"]
    share = content["cond_share"]
    found["cond_share_of_clipped"] = math.nan if share is None else _number(share["clipped"])
    late = [entry for entry in content["bias"] if entry["gradient"] > 0][1:]  # not that of the first step
    found["bias_over_gradient"] = (
        float(np.mean([entry["all"]["norm"] / entry["gradient"] for entry in late])) if late else math.nan
    )
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _figure(tests: list[PairedTest], results: list[RunResult]) -> Figure:
    """Each method's MSE minus vanilla's, in percent of vanilla's, with its 95 % interval."""
    places = sorted({(t.dataset, t.task, t.epsilon) for t in tests})
    counts = [sum((t.dataset, t.task, t.epsilon) == place for t in tests) for place in places]
    figure = Figure(figsize=(8.0, 0.9 * len(places) + 0.34 * sum(counts)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(places), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [n + 0.6 for n in counts]}
    )[:, 0]
    for ax, (dataset, task, epsilon) in zip(axes, places, strict=True):
        own = [t for t in tests if (t.dataset, t.task, t.epsilon) == (dataset, task, epsilon)]
        base = np.mean(
            [
                r.scores["mse"]
                for r in results
                if (r.dataset, r.task, round_epsilon(r.epsilon), r.method)
                == (dataset, task, epsilon, REFERENCE)
            ]
        )
        for place, test in enumerate(own):
            middle = 100 * test.difference / base
            if test.interval is not None:
                low, high = (100 * end / base for end in test.interval)
                ax.plot([low, high], [place, place], color=FORECAST, linewidth=2.2, solid_capstyle="round")
            ax.plot(middle, place, "o", color=FORECAST, markersize=6)
        ax.axvline(0, color=MUTED, linewidth=1, linestyle="--")
        ax.set_yticks(range(len(own)), [t.first for t in own], fontsize=9, color=INK)
        ax.set_ylim(len(own) - 0.4, -0.6)
        ax.grid(axis="x", color=GRID)
        ax.set_axisbelow(True)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        pairs = max(t.pairs for t in own)
        ax.set_title(
            f"{dataset} · {task} · ε = {epsilon_text(epsilon)} per {own[0].unit} · {pairs} seeds",
            fontsize=9.5, color=INK, loc="left",
        )  # fmt: skip
    axes[-1].set_xlabel(
        f"MSE compared with {REFERENCE}, % (left is better; 95 % interval over seeds)", fontsize=9.5
    )
    return figure


if __name__ == "__main__":
    main()
