"""How long `report` and `dashboard` take over many run folders: `python benchmarks/many_runs.py 10000`.

The folders are made up, in the form of `lightning-dp fit`, with a configuration as long as a real one: 280
methods, five ε and as many seeds as it takes. One of them is damaged, and has to be named while the rest is
shown. The first report finds all of them new; `again` is what a second one takes, and `edited` one after a
hundredth of them was changed.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld

ROOT = Path(__file__).parents[1]
_RECIPE = ROOT / "conf" / "experiment" / "demo_etth1.yaml"
_METHODS = 280
_NOISE = (1.1, 1.3, 1.6, 2.2, 4.0)
_DAMAGED = 1
_RATE, _STEPS, _DELTA = 0.06, 40, 1e-5


def write_runs(folder: Path, *, count: int) -> None:
    """`count` finished private runs."""
    spent = [
        epsilon_pld([GaussianEvent(noise_multiplier=noise, sampling_rate=_RATE, steps=_STEPS)], _DELTA)
        for noise in _NOISE
    ]
    recipe = yaml.safe_load(_RECIPE.read_text())
    own = ("seed_everything", "run", "privacy")
    common = yaml.safe_dump({name: part for name, part in recipe.items() if name not in own})
    for number in range(count):
        method, place = f"method-{number % _METHODS}", number // _METHODS % len(_NOISE)
        run = folder / f"run-{number:05d}"
        run.mkdir(parents=True)
        seed = number // (_METHODS * len(_NOISE))
        config = {
            "seed_everything": seed,
            "run": {"dir": str(run), "method": method},
            "privacy": {"noise_multiplier": _NOISE[place], "delta": _DELTA, "max_grad_norm": 1.0},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config) + common)
        report = {
            "status": "finished",
            "epsilon": spent[place],
            "epsilon_spent": spent[place],
            "delta": _DELTA,
            "unit": "window",
            "epsilon_of_unit": {"window": spent[place]},
            "noise_multiplier": _NOISE[place],
            "max_grad_norm": 1.0,
            "sampling_rate": _RATE,
            "steps_charged": _STEPS,
            "num_steps": _STEPS,
            "run": f"run-{number}",
        }
        (run / "privacy.json").write_text(json.dumps(report))
        rows = [
            "epoch,privacy/epsilon,step,test/mse",
            *(f"0,{step / _STEPS},{step}," for step in range(_STEPS)),
        ]
        (run / "metrics.csv").write_text("\n".join([*rows, f"0,,{_STEPS},0.5"]) + "\n")
        score = 0.4 + (number % 97) / 1000 + 0.05 / math.sqrt(spent[place])
        results = {
            "method": method,
            "dataset": "ETTh1",
            "seed": seed,
            "facts": {"task": "forecast 24"},
            **{name: report[name] for name in ("delta", "unit", "epsilon_of_unit", "noise_multiplier")},
            "epsilon": spent[place],
            "metrics": {"test/mse": score, "test/mae": score * 0.9, "baseline/last_value/mse": 1.7},
        }
        (run / "results.json").write_text(json.dumps(results))


def measured(folder: Path, *arguments: str) -> dict[str, float]:
    """Seconds of wall clock and of CPU, and lines printed, of one command in a process of its own."""
    code = (
        "import sys, time, resource; from lightning_dp.cli import main; main(sys.argv[1:]); "
        "used = resource.getrusage(resource.RUSAGE_SELF); "
        "print(f'CPU {used.ru_utime + used.ru_stime:.1f} {used.ru_maxrss / 1024:.0f}', file=sys.stderr)"
    )
    began = time.monotonic()
    places = {"XDG_CACHE_HOME": str(folder / "cache"), "LIGHTNING_DP_LEDGER": str(folder / "ledger.sqlite")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, **places},
    )
    assert f"run-{_DAMAGED:05d}" in done.stderr, "the damaged run is not named"
    _, seconds, memory = done.stderr.splitlines()[-1].split()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": float(seconds),
        "memory_mb": float(memory),
        "lines": len(done.stdout.splitlines()),
    }


def edit(folder: Path, *, every: int) -> None:
    """Change some configurations, so that these runs are to be checked again."""
    for run in sorted(folder.iterdir())[::every]:
        path = run / "config.yaml"
        path.write_text(path.read_text() + "# changed\n")


def main() -> None:
    """Measure, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "runs").exists():
            write_runs(folder / "runs", count=arguments.count)
            (folder / "runs" / f"run-{_DAMAGED:05d}" / "privacy.json").write_text('{"epsilon": ')
        rows = []
        for command in (["report", "runs"], ["dashboard", "runs", "--out", "site"]):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for state in ("new", "again", "edited"):
                if state == "edited":
                    edit(folder / "runs", every=100)
                row = {"command": command[0], "runs": arguments.count, "state": state}
                rows.append(row | measured(folder, *command))
                print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        from result_file import write

        write(arguments.json, rows=rows)


if __name__ == "__main__":
    main()
