"""Quality of samples against the time they take: five solvers, several numbers of steps, one trained model.

    LIGHTNING_DP_DATA=… python benchmarks/sampling.py --json docs/results/sampling.json

Trains the demo recipe on ETTh1 without privacy (one seed; a run folder given by --run is taken as it is),
then samples the same test windows with every solver. Quality is that of the samples: CRPS, the MSE of their
mean, and how much of the truth their intervals hold. Seconds are CPU time on one thread, which other work on
the machine stretches less than the clock: the median of --repeats passes after a warm-up, solvers in turn.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch.utils.data import DataLoader, Subset

from lightning_dp.cli import main as lightning_dp
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.timeseries.data.ett import ETT
from lightning_dp.timeseries.data.windows import WindowDataset
from lightning_dp.timeseries.metrics import CRPS, MSE, Coverage, scored_positions
from lightning_dp.timeseries.module import TimeSeriesDiffusion

ROOT = Path(__file__).parents[1]
SOLVERS = {
    "DDIM": DDIMScheduler(),
    "DPM-Solver++ (2M)": DPMSolverMultistepScheduler(),
    "UniPC": UniPCMultistepScheduler(),
    "DEIS": DEISMultistepScheduler(),
    # Runge-Kutta warm-up would double the evaluations of a short run.
    "PNDM": PNDMScheduler(skip_prk_steps=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run", type=Path, help="a finished run folder of the demo recipe")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 6, 12, 25])
    parser.add_argument("--every", type=int, default=60, help="every so many-th test window (default 60)")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        run = options.run or _train(Path(folder) / "run")
        module = TimeSeriesDiffusion.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    data = ETT("ETTh1", context_length=96, horizon=24)
    data.setup()
    windows = Subset(data.test_dataset, range(0, len(data.test_dataset), options.every))
    loader = DataLoader(windows, batch_size=64, collate_fn=WindowDataset.collate)
    cases = [(name, steps) for name in SOLVERS for steps in options.steps]
    score(module, "DDIM", steps=1, loader=loader, data=data, num_samples=options.samples)
    passes = {case: [] for case in cases}
    for _ in range(options.repeats):
        for name, steps in cases:
            found = score(module, name, steps=steps, loader=loader, data=data, num_samples=options.samples)
            passes[name, steps].append(found)
            print(name, steps, {metric: round(value, 4) for metric, value in found.items()}, flush=True)

    rows = []
    for (name, steps), found in passes.items():
        # The noise is seeded: quality is the same in every pass.
        seconds = statistics.median(one["seconds"] for one in found)
        for metric in ("crps", "mse_of_mean", "coverage_50", "coverage_90"):
            rows.append(
                {
                    "dataset": "ETTh1",
                    "task": "forecast 96→24",
                    "method": name,
                    "steps": steps,
                    "epsilon": "inf",
                    "seeds": [0],
                    "metric": metric,
                    "mean": found[0][metric],
                    "se": None,
                    "seconds": seconds,
                }
            )
        first = found[0]
        print(
            f"| {name} | {steps} | {first['crps']:.4f} | {first['mse_of_mean']:.4f} | "
            f"{first['coverage_50']:.3f} / {first['coverage_90']:.3f} | {seconds:.2f} |"
        )
    if options.json:
        _write(options.json, rows, windows=len(windows), num_samples=options.samples)


def score(
    module: TimeSeriesDiffusion,
    name: str,
    *,
    steps: int,
    loader: DataLoader,
    data: ETT,
    num_samples: int,
) -> dict[str, float]:
    """Sample all windows once; the scores, and the seconds that sampling took."""
    module.sampler = Sampler(SOLVERS[name], num_steps=steps)
    generator = torch.Generator().manual_seed(0)
    crps, mse, coverage = CRPS(), MSE(), Coverage((0.5, 0.9))
    seconds = 0.0
    for batch in loader:
        start = time.process_time()
        samples = module.sample(batch, num_samples, generator)
        seconds += time.process_time() - start
        mask = scored_positions(batch)
        crps.update(samples, batch["values"], mask)
        coverage.update(samples, batch["values"], mask)
        mse.update(samples.mean(dim=1) / data.metric_std, batch["values"] / data.metric_std, mask)
    shares = coverage.compute().tolist()
    return {
        "crps": float(crps.compute()),
        "mse_of_mean": float(mse.compute()),
        "coverage_50": shares[0],
        "coverage_90": shares[1],
        "seconds": seconds,
    }


def _train(folder: Path) -> Path:
    recipe = ROOT / "conf" / "experiment" / "demo_etth1.yaml"
    options = ["--privacy=null", "--run.wandb=disabled", "--run.test=false"]
    options += ["--trainer.enable_progress_bar=false"]
    if lightning_dp(["fit", f"--config={recipe}", f"--run.dir={folder}", *options]):
        sys.exit("training failed")
    return folder


def _write(path: Path, rows: list[dict[str, object]], *, windows: int, num_samples: int) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    content = {
        "command": "python benchmarks/sampling.py " + " ".join(sys.argv[1:]),
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, CPU",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "windows": windows,
        "samples": num_samples,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
