"""The demo over several seeds: private DP-aware, private vanilla and non-private, at equal ε.

    LIGHTNING_DP_DATA=… python benchmarks/end_to_end.py --seeds 0 1 2 --json docs/results/end_to_end.json

Every run is the public command (`lightning-dp fit --config conf/experiment/demo_….yaml`) in a process of
its own, with its own ledger. A finished run folder is not repeated, so a killed study goes on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_dp.commands.demo import METHODS
from lightning_dp.tracking.results import compare, figure, read_results
from lightning_dp.tracking.tables import comparison_tables, markdown

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", choices=["etth1", "simulator"], default="etth1")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, help="run folders (default runs/end_to_end-DATA)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out = options.out or Path("runs") / f"end_to_end-{options.data}"

    jobs = []
    for method, overrides in METHODS.items():
        private = "null" not in overrides
        for epsilon in options.epsilon if private else [float("inf")]:
            for seed in options.seeds:
                folder = out / f"{method.replace(', ', '-').replace(' ', '-')}-eps{epsilon:g}-seed{seed}"
                command = [sys.executable, "-m", "lightning_dp", "fit"]
                command += [f"--config={ROOT / 'conf' / 'experiment' / f'demo_{options.data}.yaml'}"]
                command += [f"--run.dir={folder}", f"--run.method={method}", f"--seed_everything={seed}"]
                command += ["--run.wandb=disabled", "--trainer.enable_progress_bar=false", *overrides]
                command += [f"--privacy.target_epsilon={epsilon}"] if private else []
                if not (folder / "results.json").exists():
                    jobs.append((folder, command))
    _run_all(jobs, workers=options.workers)

    rows = compare(read_results([out]))
    print(markdown(comparison_tables(rows)))
    if options.json:
        write_json(options.json, rows, out=out, seeds=options.seeds)
        figure(rows, metric="mse").savefig(options.json.with_suffix(".png"), dpi=110)


def _run_all(jobs: list[tuple[Path, list[str]]], *, workers: int) -> None:
    """Run the commands, `workers` at a time; fail on the first that fails."""
    running: list[tuple[Path, subprocess.Popen[bytes], float]] = []
    while jobs or running:
        while jobs and len(running) < workers:
            folder, command = jobs.pop(0)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            environment["LIGHTNING_DP_LEDGER"] = str(folder.parent / f"{folder.name}.ledger.sqlite")
            folder.parent.mkdir(parents=True, exist_ok=True)
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            running.append((folder, process, time.perf_counter()))
        time.sleep(0.2)
        for job in list(running):
            folder, process, start = job
            if process.poll() is not None:
                running.remove(job)
                if process.returncode:
                    sys.exit(f"{folder} failed with status {process.returncode}")
                (folder / "seconds.txt").write_text(f"{time.perf_counter() - start:.1f}\n")
                print(f"{folder.name}: {time.perf_counter() - start:.0f} s", flush=True)


def write_json(path: Path, rows: list[Any], *, out: Path, seeds: list[int]) -> None:
    """The result file, one row per method, ε and metric."""
    seconds = [float(file.read_text()) for file in out.glob("*/seconds.txt")]
    unit = next((row.unit for row in rows if row.unit), "")
    written = [
        {
            "dataset": row.dataset,
            "task": "forecast 96→24",
            "method": row.method,
            "unit": row.unit or unit,
            "epsilon": row.epsilon if row.epsilon != float("inf") else "inf",
            "epsilon_of_event": row.epsilon_of_event,
            "seeds": seeds[: row.runs] if row.epsilon else [],
            "metric": metric,
            "mean": mean,
            "se": row.se[metric] if row.runs > 1 else None,
            "seconds": sum(seconds) / len(seconds) if row.epsilon and seconds else None,
        }
        for row in rows
        for metric, mean in row.mean.items()
    ]
    commit = ["git", "describe", "--always", "--dirty"]
    content = {
        "command": "python benchmarks/end_to_end.py " + " ".join(sys.argv[1:]),
        "commit": subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread per run, CPU",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": written,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
