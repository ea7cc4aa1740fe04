"""Private images of Fashion-MNIST: which weights to train, how many of them, and what the rest is worth.

    LIGHTNING_DP_DATA=… python benchmarks/images.py --study images --json docs/results/images.json
    LIGHTNING_DP_DATA=… python benchmarks/images.py --study saliency --json docs/results/saliency.json

Every run is the public command in a process of its own, then `lightning-dp evaluate`, with one ledger for the
study. The same command goes on with a study that was stopped: fits that ended are not repeated;
--collect writes what there is.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from result_file import rows_of_runs, write

from lightning_dp.tracking.results import Row, compare, figure, metric_label, read_results, round_epsilon
from lightning_dp.tracking.tables import comparison_tables, markdown

ROOT = Path(__file__).parents[1]
_RUNS = ROOT / "runs"
_PUBLIC = "fashion_mnist_public"
_ADAPTER = "--model.init_args.adapter"
_EVALUATION = ["--samples=20000", "--distance-samples=2000", "--epochs=5"]
_EVALUATED = ["accuracy_cnn", "fd_lite0"]
_METRICS = [*_EVALUATED, "loss"]  # the last one is known from the fit


def _fragment(name: str, *more: str) -> list[str]:
    return [f"--config=conf/adapter/{name}.yaml", *more]


def _ratio(percent: int) -> list[str]:
    return [f"{_ADAPTER}.init_args.ratio={percent / 100}", f"--run.method=saliency LoRA {percent} %"]


# Gradients of low-rank pairs are shorter, and take larger steps.
_PAIRS = ["--model.init_args.optimizer.init_args.lr=3e-3", "--privacy.max_grad_norm=0.05"]
METHODS: dict[str, list[str]] = {
    "full": _fragment("full"),
    "attention": _fragment("attention"),
    "lora": _fragment("lora", *_PAIRS),
    "lora_embedder": _fragment("lora_embedder", *_PAIRS),
    **{f"saliency{p}": _fragment("saliency_lora", *_PAIRS, *_ratio(p)) for p in (10, 30, 50, 70)},
    "random30": _fragment("random_lora", *_PAIRS, f"{_ADAPTER}.init_args.ratio=0.3"),
    # Everything but training: the public network beside the private means and covariances.
    "prior": _fragment(
        "lora",
        "--run.method=prior, no training",
        "--model.init_args.optimizer.init_args.lr=0",
        "--trainer.max_steps=1",
    ),
}
STUDIES: dict[str, tuple[list[str], list[str]]] = {
    # study: (methods of several seeds, methods of one seed)
    "images": (["full", "saliency30"], ["attention", "lora", "lora_embedder", "prior"]),
    "saliency": (["saliency30"], ["saliency10", "saliency50", "saliency70", "random30", "lora"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--study", choices=list(STUDIES), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first for all methods")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[10, 1])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what there is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jobs = list(_jobs(options.study, seeds=options.seeds, epsilons=options.epsilons))
    if not options.collect:
        if not (_RUNS / _PUBLIC / "checkpoints" / "last.ckpt").exists():
            _call("fit", f"--config=conf/experiment/{_PUBLIC}.yaml", f"--run.dir={_RUNS / _PUBLIC}", *_QUIET)
        with ThreadPoolExecutor(options.workers) as pool:
            for _ in pool.map(_one, jobs):
                pass
    results = read_results([folder for folder, _ in jobs if (folder / "results.json").is_file()])
    rows = compare(results)
    print(markdown(comparison_tables(rows, only=_METRICS)))
    if options.json:
        written = [row for row in rows_of_runs(results) if row["metric"] in _METRICS]
        write(options.json, rows=written, evaluation=_EVALUATION)
        for name, picture in _PICTURES[options.study]:
            drawn = _RUNS / "images" / name / "plots" / f"{picture}.png"
            if drawn.is_file():
                shutil.copy(drawn, options.json.with_name(f"{options.study}_{name}.png"))
        if options.study == "saliency":
            _shares(rows).savefig(options.json.with_suffix(".png"), dpi=110)
        else:
            for metric in _EVALUATED:
                drawing = figure(rows, metric=metric)
                drawing.savefig(options.json.with_name(f"{options.study}_{metric}.png"), dpi=110)


_QUIET = ["--run.wandb=disabled", "--trainer.enable_progress_bar=false"]
_PICTURES = {
    "images": [("full-10-0", "sample_grid"), ("full-1-0", "sample_grid")],
    "saliency": [("saliency30-10-0", "saliency")],
}


_SHARES = {
    "by saliency": {**{f"saliency LoRA {p} %": p / 100 for p in (10, 30, 50, 70)}, "LoRA": 1.0},
    "random": {"random LoRA": 0.3},
}
_STYLES: dict[str, dict[str, Any]] = {
    "by saliency": {"marker": "o", "capsize": 3},
    "random": {"marker": "D", "capsize": 3, "linestyle": "none", "markerfacecolor": "white", "markersize": 8},
}


def _shares(rows: list[Row]) -> Figure:
    """Every metric against the share of matrices that train; random choices are hollow."""
    drawing = Figure(figsize=(9.5, 3.4), layout="constrained", facecolor="white")
    axes = drawing.subplots(1, len(_METRICS))
    epsilons = sorted({round_epsilon(row.epsilon) for row in rows}, reverse=True)
    lines = list(product(zip(epsilons, ("#1f77b4", "#d95f02"), strict=False), _SHARES))
    for axis, metric in zip(axes, _METRICS, strict=True):
        for (epsilon, colour), choice in lines:
            here = [row for row in rows if round_epsilon(row.epsilon) == epsilon and metric in row.mean]
            found = {share: row for row in here if (share := _SHARES[choice].get(row.method))}
            own = [found[share] for share in sorted(found)]
            axis.errorbar(
                sorted(found),
                [row.mean[metric] for row in own],
                yerr=np.nan_to_num([row.se[metric] for row in own]),
                color=colour,
                label=f"{choice}, ε = {epsilon:g}",
                **_STYLES[choice],
            )
        axis.set(title=metric_label(metric), xlabel="share of the matrices", xlim=(0, 1.05))
        axis.grid(alpha=0.3)
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return drawing


def _jobs(study: str, *, seeds: list[int], epsilons: list[float]) -> Iterator[tuple[Path, list[str]]]:
    """Run folders and what makes them, all of the first seed first."""
    several, single = STUDIES[study]
    for number, seed in enumerate(seeds):
        for epsilon in epsilons:
            for method in [*several, *single] if number == 0 else several:
                folder = _RUNS / "images" / f"{method}-{epsilon:g}-{seed}"
                options = [f"--seed_everything={seed}", f"--privacy.target_epsilon={epsilon:g}"]
                yield folder, [*METHODS[method], *options]


def _one(job: tuple[Path, list[str]]) -> None:
    folder, options = job
    results = folder / "results.json"
    if not results.exists():
        config = "--config=conf/experiment/fashion_mnist.yaml"
        # A resumed fit would be some steps short, which no other row of the table is.
        shutil.rmtree(folder, ignore_errors=True)
        _call("fit", config, *options, f"--run.dir={folder}", *_QUIET)
    if not {f"test/{name}" for name in _EVALUATED} <= set(json.loads(results.read_text())["metrics"]):
        _call("evaluate", str(folder), *_EVALUATION)


def _call(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "lightning_dp", *command], check=True, cwd=ROOT, env=environment)


if __name__ == "__main__":
    main()
