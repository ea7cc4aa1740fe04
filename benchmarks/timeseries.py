"""Private time series: forecasts of smart meters per household, synthetic days, and gaps of ETTh1 filled.

    LIGHTNING_DP_DATA=… python benchmarks/timeseries.py --workers 2 --json docs/results/timeseries.json

Every run is the public command in a process of its own, with one ledger for the study. Run folders that are
finished are not repeated, so a study that was stopped goes on by the same command; --collect writes what
there is.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from result_file import rows_of_runs, write

from lightning_dp.tracking.results import compare, read_results
from lightning_dp.tracking.tables import comparison_tables, markdown

ROOT = Path(__file__).parents[1]
_OUT = ROOT / "runs"
_GAPS = ("PointImputation", "SubSequenceImputation", "BlackoutImputation")
_QUIET = ["--run.wandb=disabled", "--trainer.enable_progress_bar=false"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what there is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.collect:
        _run(options.seeds, workers=options.workers)
    folders = [_OUT / name for name in ("smartmeter", "smartmeter_plain", "synthesise", "etth1_gaps")]
    results = read_results([folder for folder in folders if folder.is_dir()])
    print(markdown(comparison_tables(compare(results))))
    if options.json:
        write(options.json, rows=rows_of_runs(results))
        curves = _OUT / "synthesise" / "private-0" / "plots" / "synthesis.png"
        if curves.is_file():
            shutil.copy(curves, options.json.with_name("timeseries_synthesis.png"))


def _run(seeds: list[int], *, workers: int) -> None:
    for name in ("smartmeter_public", "synthesise_smartmeter_public"):
        if not (_OUT / name / "results.json").exists():
            _call(_fit(f"conf/experiment/{name}.yaml", folder=_OUT / name))
    sweep = ["sweep", "run", "sweeps/smartmeter.yaml", "--out=runs/smartmeter", f"--workers={workers}"]
    for override in ("data.init_args.task=null", "run.wandb=disabled", f"seed_everything={seeds}"):
        sweep.append(f"--override={override}")
    _call(sweep)
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(_chain, _jobs(seeds[:3])):
            pass


def _jobs(seeds: list[int]) -> Iterator[list[tuple[Path, list[str]]]]:
    """(what a command makes, command), each list in order."""
    for seed in seeds:
        named = [f"--seed_everything={seed}"]
        folder = _OUT / "smartmeter_plain" / f"{seed}"
        options = ["--privacy=null", "--run.method=not private"]
        yield [(folder, _fit("conf/experiment/smartmeter.yaml", *named, *options, folder=folder))]
        folder = _OUT / "synthesise" / f"private-{seed}"
        yield [(folder, _fit("conf/experiment/synthesise_smartmeter.yaml", *named, folder=folder))]
        folder = _OUT / "etth1_gaps_models" / f"{seed}"
        options = ["--privacy=null", "--run.method=not private", "--run.test=false"]
        options += ["--trainer.max_steps=1500", "--data.init_args.batch_size=128"]
        chain = [(folder, _fit("conf/experiment/etth1_impute.yaml", *named, *options, folder=folder))]
        for gap in _GAPS:
            chain.append((_OUT / "etth1_gaps" / f"{gap}-{seed}", _test_of_gap(folder, gap=gap, seed=seed)))
        yield chain


def _test_of_gap(trained: Path, *, gap: str, seed: int) -> list[str]:
    return [
        "test",
        f"--config={trained / 'config.yaml'}",
        f"--run.dir={_OUT / 'etth1_gaps' / f'{gap}-{seed}'}",
        f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}",
        "--run.method=not private",
        f"--data.init_args.task=lightning_dp.timeseries.masks.{gap}",
        "--data.init_args.task.ratio=0.5",
        "--model.init_args.num_samples=10",
        *_QUIET,
    ]


def _fit(config: str, *options: str, folder: Path) -> list[str]:
    return ["fit", f"--config={config}", f"--run.dir={folder}", *options, *_QUIET]


def _chain(jobs: list[tuple[Path, list[str]]]) -> None:
    for made, command in jobs:
        done = made / ("checkpoints/last.ckpt" if "--run.test=false" in command else "results.json")
        if not done.exists():
            _call(command)


def _call(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "lightning_dp", *command], check=True, cwd=ROOT, env=environment)


if __name__ == "__main__":
    main()
