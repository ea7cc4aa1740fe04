"""The non-private gate on ETTh1, 96 hours of context to 24 of forecast, with the recipe that passes it.

Trains one small diffusion transformer per seed, keeps the epoch with the lowest validation error (never
the test error), and scores every test window: MSE and MAE of the net's conditional mean on standardised
values, CRPS of its samples in original units.

    python benchmarks/etth1_gate.py --seeds 0 1 2 --json docs/results/etth1_gate.json

Needs the ETT data (LIGHTNING_DP_DATA, or a network to download it). One core takes a few minutes a seed.
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
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dp.callbacks.ema import EMA
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.timeseries.baselines import evaluate_baselines
from lightning_dp.timeseries.data.ett import ETT
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean

METRICS = ("mse", "mae", "crps")
CONDITIONINGS = {"dit_vanilla": AdaLNZero(), "dit_dp_aware": DPAwareAdaLNZero(c_max=3.0)}
BATCH_SIZE, LEARNING_RATE = 64, 1e-3


def run(method: str, *, seed: int, epochs: int) -> dict[str, float]:
    """Train and test once; the metrics, and the seconds of both."""
    seed_everything(seed, verbose=False)
    data = ETT("ETTh1", context_length=96, horizon=24, batch_size=BATCH_SIZE)
    data.prepare_data()
    data.setup()
    net = SeriesDiT(
        CONDITIONINGS[method],
        length=120,
        num_channels=data.num_channels,
        num_covariates=data.num_covariates,
        patch_size=24,
        hidden_size=32,
        depth=1,
        num_heads=4,
    )
    steps = epochs * len(data.train_dataloader())
    model = TimeSeriesDiffusion(
        net,
        normaliser=DayMean(steps_per_day=data.steps_per_day),
        sampler=Sampler(num_steps=6),
        num_samples=100,
        optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, weight_decay=0.01),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, LEARNING_RATE, total_steps=steps, pct_start=0.1
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="nonprivate/val_mse", save_weights_only=False)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            gradient_clip_val=1.0,
            callbacks=[EMA(decay=0.999), best],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.perf_counter()
        trainer.fit(model, datamodule=data)
        trained = time.perf_counter()
        data.batch_size = 256
        (result,) = trainer.test(model, datamodule=data, ckpt_path=best.best_model_path, verbose=False)
        tested = time.perf_counter()
    scores = {name: result[f"test/{name}"] for name in METRICS}
    return {**scores, "fit_seconds": trained - start, "test_seconds": tested - trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=sorted(CONDITIONINGS), default=["dit_vanilla"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    common: dict[str, Any] = {"dataset": "ETTh1", "task": "forecast 96→24", "unit": "window"}
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        runs = []
        for seed in options.seeds:
            runs.append(run(method, seed=seed, epochs=options.epochs))
            print(method, seed, {name: round(value, 4) for name, value in runs[-1].items()}, flush=True)
        for metric in METRICS:
            values = [one[metric] for one in runs]
            rows.append(
                {
                    **common,
                    "method": method,
                    "epsilon": None,  # trained without privacy: ε = ∞
                    "seeds": options.seeds,
                    "metric": metric,
                    "mean": statistics.fmean(values),
                    "se": statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
                    "values": values,
                    "seconds": statistics.fmean(one["fit_seconds"] + one["test_seconds"] for one in runs),
                    "test_seconds": statistics.fmean(one["test_seconds"] for one in runs),
                }
            )
    for method, scores in evaluate_baselines(ETT("ETTh1", batch_size=256)).items():
        for metric, value in scores.items():
            row = {"method": method, "epsilon": 0.0, "seeds": [], "metric": metric, "mean": value}
            rows.append({**common, **row, "se": None, "seconds": 0.0})
    for row in rows:
        print(f"{row['method']:20s} {row['metric']:5s} {row['mean']:.4f} {row['se'] or 0:.4f}")
    if options.json:
        report = {
            "command": "python benchmarks/etth1_gate.py " + " ".join(sys.argv[1:]),
            "commit": _commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} thread(s), CPU",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
