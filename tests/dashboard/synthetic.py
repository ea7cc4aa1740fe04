"""Run folders as `lightning-dp fit` leaves them, made of random numbers."""

import json
import math
import zlib
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

LEVELS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def write_run(
    folder: Path,
    *,
    method: str = "dp-aware",
    dataset: str = "ETTh1",
    epsilon: float = 8.0,
    seed: int | None = 0,
    metrics: dict[str, float] | None = None,
    facts: dict[str, str | float | int] | None = None,
    steps: int = 40,
    picture: str | None = None,
    diagnostics: bool = False,
    finished: bool = True,
    strict: bool = True,
) -> Path:
    """One folder. `strict=False` writes it like an old version: bare Infinity, no seed, no facts."""
    folder.mkdir(parents=True)
    private = math.isfinite(epsilon)
    random = np.random.default_rng(zlib.crc32(f"{method} {epsilon} {seed}".encode()))
    written = epsilon if private or not strict else "inf"
    (folder / "config.yaml").write_text(f"seed_everything: {seed or 0}\nrun:\n  method: '{method}'\n")
    report = {
        "status": "finished" if finished else "running",
        "epsilon_spent": written,
        "epsilon": written,
        "delta": 1e-5 if private else None,
        "unit": "window" if private else None,
        "noise_multiplier": (1.25 if epsilon > 2 else 8.0) if private else 0.0,  # which costs less than ε
        "max_grad_norm": 1.0,
        "sampling_rate": 0.06,
        "num_units": 8521,
        "steps_charged": steps,
        "run": f"{folder.name}-id",
        "ledger_seq": 6,
        "ledger_hash": "ab" * 32,
    }
    (folder / "privacy.json").write_text(json.dumps(report))
    losses = 2 * np.exp(-np.arange(steps) / 20) + random.normal(0, 0.1, steps)
    lines = ["epoch,nonprivate/train_loss,privacy/epsilon,step,test/mse"]
    lines += [f"0,{loss},{(i + 1) / steps},{i}," for i, loss in enumerate(losses)]
    (folder / "metrics.csv").write_text("\n".join([*lines, f"0,,,{steps},0.5"]) + "\n")
    if picture:
        (folder / "plots").mkdir()
        shade = np.broadcast_to(np.linspace(90, 250, 480, dtype=np.uint8), (120, 480))
        Image.fromarray(np.ascontiguousarray(shade)).save(folder / "plots" / f"{picture}.png")
    if diagnostics:
        (folder / "diagnostics.json").write_text(json.dumps(_diagnostics(random, steps=steps)))
    if finished:
        results = {
            "method": method,
            "dataset": dataset,
            "epsilon": written,
            "delta": report["delta"],
            "unit": report["unit"],
            "epsilon_of_unit": {"window": epsilon if private else None, "event": None} if private else {},
            "noise_multiplier": report["noise_multiplier"],
            "steps": steps,
            "ledger": [6, "ab" * 32],
            "metrics": {
                "test/epsilon": written,
                "nonprivate/train_loss": float(losses[-1]),
                "baseline/mean_of_days/mse": 0.41,
                "baseline/last_value/mse": 1.7,
                **{f"test/{name}": value for name, value in (metrics or {"mse": 0.4}).items()},
            },
        }
        if strict:
            results |= {"seed": seed, "facts": facts or {}}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_many(folder: Path, *, count: int) -> None:
    """`count` runs over two data sets, tasks, four methods, five budgets and as many seeds as it takes."""
    random = np.random.default_rng(0)
    settings = product(
        range(count),
        (("ETTh1", "forecast"), ("fashion-mnist", "generate")),
        ("dp-aware", "full", "lora", "saliency-lora"),
        (0.5, 1.0, 3.0, 8.0, math.inf),
    )
    for number, (seed, (dataset, task), method, epsilon) in zip(range(count), settings, strict=False):
        level = 0.35 + 0.08 / min(epsilon, 20) + 0.02 * len(method) / 10 + random.normal(0, 0.004)
        images = dataset == "fashion-mnist"
        facts: dict[str, str | float | int] = {"task": task}
        if method == "saliency-lora":
            facts["saliency_ratio"] = (0.1, 0.3, 0.5)[seed % 3]
        scores = {"mse": level, "mae": level * 0.9, "crps": level * 0.7}
        write_run(
            folder / f"{dataset}-{method}-{epsilon:g}-{seed}",
            method=method,
            dataset=dataset,
            epsilon=epsilon,
            seed=seed,
            metrics={"fd_lite0": 90 * level, "accuracy": 1 - level} if images else scores,
            facts=facts,
            picture=("sample_grid" if images else "forecast_fan") if number < 80 else None,
            diagnostics=number < 60,
        )


def _diagnostics(random: np.random.Generator, *, steps: int) -> dict:
    def partition(scale: float) -> dict:
        norms = np.sort(scale * (1 + random.pareto(3, 4000)))
        shares = np.concatenate([np.arange(100) / 100, 1 - np.geomspace(1e-2, 1 / 4000, 60)])
        levels = {name: float(np.quantile(norms, level)) for name, level in LEVELS.items()}
        return {
            "parameters": 1000,
            "mean": float(norms.mean()),
            "quantiles": levels,
            "tail_ratio": levels["p99"] / levels["p50"],
            "ecdf": {"share": shares.tolist(), "norm": np.quantile(norms, shares).tolist()},
            "tail_index": {"alpha": 3.0, "low": 2.7, "high": 3.3, "interval": 0.95, "k": 200, "n": 4000},
            "tail_index_within_steps": None,
        }

    def over_steps(scale: float) -> dict:
        return {name: (scale * (1 + level + random.random(steps))).tolist() for name, level in LEVELS.items()}

    return {
        "nonprivate": "raw statistics of the training data; no ε covers them",
        "mode": "private",
        "max_grad_norm": 1.0,
        "units": 4000,
        "partitions": {"all": partition(0.5), "cond": partition(0.3), "other": partition(0.4)},
        "clip_fraction": 0.56,
        "eta": {"mean": 0.8, "p10": 0.3},
        "cond_share": {"mean": 0.3, "clipped": 0.4, "not_clipped": 0.2},
        "steps": {
            "step": list(range(steps)),
            "clip_fraction": random.random(steps).tolist(),
            "eta_mean": random.random(steps).tolist(),
            "cond_share": random.random(steps).tolist(),
            **{name: over_steps(scale) for name, scale in (("all", 0.5), ("cond", 0.3), ("other", 0.4))},
        },
    }
