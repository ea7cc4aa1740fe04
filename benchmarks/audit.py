"""Do audits see what is broken, and nothing else? Estimators on known mechanisms, then our own training path.

Parts, each of which adds its rows to the progress file and is not repeated where they are there:

    estimators  2,000 audits each of null scores, of the claimed μ = 1, and of noise √2 and 2 times too small
    faults      the audit of `lightning-dp audit` on toy modules of both families, clean and with four faults
    habit       fits with `privacy.audit: true`: how often the bound in the report is above its ε
    cost        time per step with and without it

    python benchmarks/audit.py --fits 200 --progress progress.jsonl --json docs/results/audit.json
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

TESTS = Path(__file__).parents[1] / "tests"
# Without this folder, whose images.py would hide the tests' package.
sys.path[:1] = [str(TESTS), str(TESTS / "callbacks")]

# ruff: noqa: E402
from audits.planted import FAULTS
from images.image_support import awake, npz_data, tiny_module, tiny_net, write_npz
from replay.test_replay import households, series_module
from replay.toys import Points, Still

from lightning_dp.audits.figures import score_histograms, trade_off
from lightning_dp.audits.judged import judge
from lightning_dp.audits.white_box import Setting, attack
from lightning_dp.callbacks import differential_privacy
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.audit.bayesian import epsilon_credible
from lightning_dp.privacy.audit.classic import epsilon_classic
from lightning_dp.privacy.audit.counts import count, count_held_out
from lightning_dp.privacy.audit.f_dp_one_run import mu_one_run
from lightning_dp.privacy.audit.gaussian import epsilon_of_mu, mu_lower_bound
from lightning_dp.privacy.audit.guesses import Guesses
from lightning_dp.privacy.audit.one_run import epsilon_one_run

ALPHA, DELTA, TRIALS = 0.05, 1e-5, 2000
FAMILIES = ("TimeSeriesDiffusion", "LatentDiffusion")
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
}


def estimators() -> Iterator[dict[str, Any]]:
    """Shares of audits whose bound is above ε of μ = 1 (or 0 for null scores), and the median bound."""
    for n in (100, 500):
        for mu, claimed in ((0.0, 0.0), (1.0, 1.0), (2**0.5, 1.0), (2.0, 1.0)):
            limit = float(epsilon_of_mu(claimed, delta=DELTA))
            for name, bounds in bounds_of(mu, n).items():
                yield {
                    "estimator": name,
                    "n": n,
                    "mu": round(mu, 3),
                    "claimed_mu": claimed,
                    "trials": TRIALS,
                    "above": float((bounds > limit).mean()),
                    "median": float(np.median(bounds)),
                    "claimed": limit,
                }


def bounds_of(mu: float, n: int) -> dict[str, np.ndarray]:
    """By estimator, bounds (TRIALS,) of ε from n scores of each kind, or of 2n canaries in one run."""
    rng = np.random.default_rng(3)
    null, canary = rng.standard_normal((TRIALS, n)), rng.standard_normal((TRIALS, n)) + mu
    counts = count_held_out(null, canary)
    included = rng.random((TRIALS, 2 * n)) < 0.5
    scores = rng.standard_normal((TRIALS, 2 * n)) + mu * included
    guesses = Guesses.of(scores, included, guessed=n // 2)
    fixed = count(null, canary, threshold=0.5)
    return {
        "Gaussian, threshold held out": _of(mu_lower_bound(counts, alpha=ALPHA)),
        "Gaussian, threshold known": _of(mu_lower_bound(fixed, alpha=ALPHA)),
        "classic": epsilon_classic(counts, delta=DELTA, alpha=ALPHA),
        "Bayesian, cautious prior": epsilon_credible(counts, delta=DELTA, alpha=ALPHA),
        "Bayesian, Jeffreys' prior": epsilon_credible(counts, delta=DELTA, alpha=ALPHA, prior="jeffreys"),
        "one run": epsilon_one_run(guesses, delta=DELTA, alpha=ALPHA),
        "f-DP one run": _of(mu_one_run(guesses, alpha=ALPHA)),
    }


def _of(mu: np.ndarray) -> np.ndarray:
    return epsilon_of_mu(mu, delta=DELTA)


def faults(figures: Path) -> Iterator[dict[str, Any]]:
    """Both families, clean and with each fault; the clean series audit and one fault are drawn."""
    for family in FAMILIES:
        for name in ("clean", *FAULTS):
            yield from _audited(family, name, figures)


def _audited(family: str, name: str, figures: Path) -> Iterator[dict[str, Any]]:
    plant, seen_by = (nullcontext, None) if name == "clean" else FAULTS[name]
    with tempfile.TemporaryDirectory() as folder:
        module, data = toy(family, Path(folder))
        privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=DELTA, expected_batch_size=12)
        started, cpu = time.perf_counter(), time.process_time()
        setting = Setting()
        with plant():
            scores = attack(module, data, setting=setting, privacy=privacy)
        rows = judge(scores, delta=DELTA, alpha=ALPHA)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if family == FAMILIES[0] and name in ("clean", "shuffled batches"):
        stem = figures.with_suffix("")
        suffix = "" if name == "clean" else "_shuffled"
        score_histograms(scores).savefig(f"{stem}_scores{suffix}.png", dpi=100)
        trade_off(scores, alpha=ALPHA / len(rows)).savefig(f"{stem}_trade_off{suffix}.png", dpi=100)
    yield {
        "family": family,
        "fault": name,
        "expected": seen_by,
        "flagged_by": sorted({row.adversary for row in rows if row.exceeds}),
        "bounds": {
            f"{row.adversary}, {row.estimator}": [round(row.bound, 3), round(row.claimed, 3)] for row in rows
        },
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def toy(family: str, folder: Path) -> tuple[LightningModule, LightningDataModule]:
    """A module and data of a few thousand weights, set up."""
    if family == "LatentDiffusion":
        data: LightningDataModule = npz_data(write_npz(folder, train=60))
        module: LightningModule = tiny_module(net=awake(tiny_net()))
        data.prepare_data()
        data.setup("fit")
        return module, data
    series = households(windows_per_user=1)
    series.setup("fit")
    return series_module(num_channels=series.num_channels, num_covariates=series.num_covariates), series


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Preflight of the first fit serves for all: they are of one module and one data module."""
    real, known = differential_privacy.run_preflight, []

    def remembered(*arguments: Any, engine: Any, **options: Any) -> Any:
        if not known:
            known.append((real(*arguments, engine=engine, **options), deepcopy(engine.sites)))
        accepted, sites = known[0]
        engine.know(deepcopy(sites))
        return list(accepted)

    with patch.object(differential_privacy, "run_preflight", remembered):
        yield


def toy_fit(folder: Path, *, steps: int) -> dict:
    """A fit of a small net by the real callback, as if of 3,200 units: 64 canaries; its report."""
    privacy = DifferentialPrivacy(
        noise_multiplier=1.0,
        delta=1e-5,
        expected_batch_size=400,
        num_units=3200,
        max_grad_norm=0.3,
        ledger=str(folder / "ledger.sqlite"),
        spot_check=0,
        audit=True,
    )
    Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        callbacks=[privacy],
        **QUIET,
    ).fit(Still(), datamodule=Points())
    return json.loads((folder / "privacy.json").read_text())


def habit(fits: int) -> Iterator[dict[str, Any]]:
    """Reports of fits: is the bound above ε?"""
    with looked_at_once():
        for _ in range(fits):
            with tempfile.TemporaryDirectory() as folder:
                audit = toy_fit(Path(folder), steps=40)["audit"]
            step = audit["per_step"] or {"exceeds": False, "noise_multiplier_at_most": float("inf")}
            yield {
                "canaries": audit["n"],
                "bound": audit["bound"],
                "claimed": audit["claimed"],
                "exceeds": audit["exceeds"],
                "step_exceeds": step["exceeds"],
            }


class _Clock(Callback):
    """Seconds of the process in steps, the first ten left out."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(time.process_time())

    def per_step(self) -> float:
        return float(np.median(np.diff(self.steps[10:])))


def cost() -> Iterator[dict[str, Any]]:
    """Milliseconds of processor time a step, of a small series module, audited or not in turns."""
    from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
    from lightning_dp.nets.series_dit import SeriesDiT
    from lightning_dp.timeseries.data.simulator import HouseholdLoad
    from lightning_dp.timeseries.module import TimeSeriesDiffusion
    from lightning_dp.timeseries.normalise import DayMean

    found: dict[bool, list[float]] = {True: [], False: []}
    with looked_at_once():
        for audit in (False, True, False, True):
            data = HouseholdLoad(400, num_days=20, context_length=96, horizon=24, windows_per_user=2)
            net = SeriesDiT(
                DPAwareAdaLNZero(),
                length=120,
                num_channels=data.num_channels,
                num_covariates=data.num_covariates,
                patch_size=24,
                hidden_size=32,
                depth=1,
                num_heads=4,
            )
            module = TimeSeriesDiffusion(net, normaliser=DayMean(steps_per_day=24))
            clock = _Clock()
            with tempfile.TemporaryDirectory() as folder:
                privacy = DifferentialPrivacy(
                    noise_multiplier=1.0,
                    delta=1e-3,
                    expected_batch_size=64,
                    ledger=str(Path(folder) / "ledger.sqlite"),
                    spot_check=0,
                    audit=audit,
                )
                options = {"accelerator": "cpu", "devices": 1, "max_steps": 60, **QUIET}
                Trainer(default_root_dir=folder, callbacks=[privacy, clock], **options).fit(module, data)
            found[audit].append(clock.per_step())
    plain, audited = (1000 * float(np.mean(found[audit])) for audit in (False, True))
    yield {"plain_ms": plain, "audited_ms": audited, "share": audited / plain - 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=["estimators", "faults", "cost", "habit"])
    parser.add_argument("--fits", type=int, default=200, help="of the part habit")
    parser.add_argument("--minutes", type=float, help="stop the part habit after so many")
    parser.add_argument("--progress", type=Path, default=Path("progress.jsonl"))
    parser.add_argument("--json", type=Path, default=Path("docs/results/audit.json"))
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).parent))
    import result_file

    torch.set_num_threads(1)
    known = _read(arguments.progress)
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "estimators": estimators,
        "faults": lambda: faults(arguments.json),
        "cost": cost,
        "habit": lambda: habit(arguments.fits - len(known.get("habit", []))),
    }
    end = time.monotonic() + 60 * (arguments.minutes or float("inf"))
    for part in arguments.parts:
        if part != "habit" and known.get(part):
            continue
        for row in parts[part]():
            known.setdefault(part, []).append(row)
            with arguments.progress.open("a") as file:
                file.write(json.dumps({"part": part, **row}, ensure_ascii=False) + "\n")
            if part == "habit" and time.monotonic() > end:
                break
    rows = [{"part": part, **row} for part, found in known.items() if part != "habit" for row in found]
    fits = known.get("habit", [])
    summary = [
        {
            "part": "habit",
            "canaries": canaries,
            "fits": len(own),
            "above": sum(fit["exceeds"] for fit in own),
            "step_above": sum(fit["step_exceeds"] for fit in own),
            "median_bound": float(np.median([fit["bound"] for fit in own])),
            "largest_bound": max(fit["bound"] for fit in own),
            "claimed": own[0]["claimed"],
        }
        for canaries in sorted({fit["canaries"] for fit in fits})
        if (own := [fit for fit in fits if fit["canaries"] == canaries])
    ]
    result_file.write(arguments.json, rows=[*rows, *summary])


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    known: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        known.setdefault(row.pop("part"), []).append(row)
    return known


if __name__ == "__main__":
    main()
