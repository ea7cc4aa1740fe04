"""A first look at the regime of DP-aware AdaLN-Zero (arXiv 2602.22610) on ETTh1, with the net of 4 × 64.

    LIGHTNING_DP_DATA=… python benchmarks/papers_timedit.py --out runs/papers_timedit \
        --json docs/results/papers_timedit.json

Vanilla and Medium at σ = .05, as published, and at ε = 8, three seeds each: 12 private runs, one after the
other, each the public command in a process of its own. A run that has its result is not repeated, so a study
that was stopped goes on by the same command; --collect runs nothing and writes what there is.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from result_file import rows_of_runs, write

from lightning_dp.tracking.paired import paired_tests
from lightning_dp.tracking.results import RESULTS_NAME, compare, read_results
from lightning_dp.tracking.tables import comparison_tables, markdown, paired_table

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
STEPS = 200
NOISE = {
    "sigma05": [],
    "eps8": ["--privacy.noise_multiplier=null", "--privacy.target_epsilon=8"],
}
METHODS = {"medium": [], "vanilla": ["--config=conf/controls/vanilla.yaml"]}
_METRICS = ("mse", "crps")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "papers_timedit", help="of the runs")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what there is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.collect:
        for seed, (noise, own), (method, config) in itertools.product(SEEDS, NOISE.items(), METHODS.items()):
            _run(options.out / f"{noise}_{method}_{seed}", seed=seed, options=[*config, *own])
    results = read_results([options.out])
    tests = {metric: paired_tests(results, metric=metric) for metric in _METRICS}
    tables = comparison_tables(compare(results), only=["mse", "rmse", "r2", "crps", "coverage_90"])
    print(markdown([*tables, *(paired_table(found, metric=metric) for metric, found in tests.items())]))
    diagnostics = _diagnostics(options.out)
    print(json.dumps(diagnostics, indent=1, ensure_ascii=False))
    if options.json:
        paired = [{"metric": metric, **asdict(test)} for metric in _METRICS for test in tests[metric]]
        write(options.json, rows=rows_of_runs(results), paired=paired, diagnostics=diagnostics)


def _run(folder: Path, *, seed: int, options: list[str]) -> None:
    """One private fit and its test, unless its result is there."""
    if (folder / RESULTS_NAME).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    print(folder, flush=True)
    recipe = [
        "experiment/papers/timedit_etth1",
        "model/timedit_4x64",
        "data/timedit_96",
        "controls/diagnostics",
    ]
    command = [sys.executable, "-m", "lightning_dp", "fit", *(f"--config=conf/{one}.yaml" for one in recipe)]
    command += [
        *options,
        f"--run.dir={folder.resolve()}",
        f"--seed_everything={seed}",
        "--data.init_args.task=null",  # the forecast of 24 hours
        f"--trainer.max_steps={STEPS}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--model.init_args.lr_scheduler.init_args.total_iters={STEPS // 20}",  # as the paper: a twentieth
        "--model.init_args.num_samples=10",
        "--model.init_args.sampler.init_args.num_steps=20",
        "--run.wandb=disabled",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def _diagnostics(out: Path) -> list[dict[str, Any]]:
    """Of each noise and method, means over seeds: how much is clipped, and each path's share of ‖g‖²."""
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for path in sorted(out.glob("*/diagnostics.json")):
        content = json.loads(path.read_text())
        found = {"clip_fraction": content["clip_fraction"], "eta": content["eta"]["mean"]}
        found |= {f"p99_{part}": own["quantiles"]["p99"] for part, own in content["partitions"].items()}
        found |= {f"share_{way}": own["mean"] for way, own in content["paths"].items()}
        groups[path.parent.name.rpartition("_")[0]].append(found)
    rows = []
    for name, runs in groups.items():
        row: dict[str, Any] = {"run": name, "seeds": len(runs)}
        for figure in runs[0]:
            values = np.array([run[figure] for run in runs])
            error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
            row[figure] = {"mean": float(values.mean()), "se": error}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
