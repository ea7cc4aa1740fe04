"""The stories of crash.py, played by real fits: Lightning's Trainer with the DifferentialPrivacy callback.

The witness is the noise source: it appends a line to a file and syncs it whenever noise is about to be
added, that is, once for every step that may be released. With two ranks the processes are real gloo ranks,
and any one of them may be lost.

    python benchmarks/crash_fit.py --trials 40 --rank-trials 60 --seed 1 --json docs/results/crash_fit.json
"""

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import crash
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.charging import StepCharges
from lightning_dp.privacy.ledger import BudgetExceeded, Ledger
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.plan import PrivacyPlan
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.strategies.private_ddp import PrivateDDP

UNITS, BATCH = 200, 10  # q = 0.05, as the toy's event says
PLANNED_STEPS = 2_000
FIT, RANKS = "fit", "fit on two ranks"
PATIENCE = 2.0


class Rows(Dataset):
    """Toy rows; reading one leaves a trace."""

    def __init__(self, home: Path) -> None:
        self.trace = home / f"read-{os.getpid()}"

    def __len__(self) -> int:
        return UNITS

    def __getitem__(self, index: int) -> Tensor:
        self.trace.touch()
        return torch.full((4,), index / UNITS)


class Data(LightningDataModule):
    """`Rows` under a ledger's name."""

    def __init__(self, home: Path, *, dataset: str) -> None:
        super().__init__()
        self.dataset_id = dataset
        self.rows = Rows(home)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=BATCH, shuffle=True)

    def synthetic_units(self, num_units: int) -> Tensor:
        return torch.randn(num_units, 4)


class Model(LightningModule):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class WitnessedNoise(GaussianNoise):
    """The real noise; every step that may be released is written down first."""

    def __init__(
        self, home: Path, *, privacy: DifferentialPrivacy, dataset: str, point: crash.Killer
    ) -> None:
        super().__init__()
        self.path = home / "witness"
        self.privacy = privacy
        self.dataset = dataset
        self.point = point
        self.parts = 0

    def add_to(self, sums: Tensor, *, scale: float) -> Tensor:
        # Weight and bias come one after the other; ranks send both at once.
        first = self.parts % 2 == 0 or sums.numel() == 5
        self.parts += 1
        if first:
            self.point("before touch")
            witness = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.write(witness, f"{self.dataset} {self.privacy._run}\n".encode())
            os.fsync(witness)
            os.close(witness)
        noisy = super().add_to(sums, scale=scale)
        if first:
            self.point("after touch")
        return noisy


class Driver(Callback):
    """Checkpoints with points to be killed at, and the end of the story's part."""

    def __init__(self, home: Path, job: crash.Job, point: crash.Killer) -> None:
        self.home = home
        self.job = job
        self.point = point

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % 7 == 0:
            temporary = self.home / f"{os.getpid()}.tmp"
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())
                self.point("inside checkpoint")
                self.point("before rename")
                temporary.rename(crash.checkpoint_path(self.home, self.job.run, step=step))
                self.point("after rename")
        if step >= self.job.num_steps:
            trainer.should_stop = True


def hook_charges(point: crash.Killer) -> None:
    """Visit the points that lie inside the account of the steps."""
    cover, close = StepCharges.cover, StepCharges.close

    def cover_with_point(self: StepCharges) -> bool:
        point("before reserve")
        return cover(self)

    def close_between_points(self: StepCharges) -> None:
        point("before close")
        close(self)
        point("after close")

    StepCharges.cover = cover_with_point  # type: ignore[method-assign]
    StepCharges.close = close_between_points  # type: ignore[method-assign]


def fit(home: Path, job: crash.Job, *, ranks: int = 1) -> int:
    """One process start; returns its exit code."""
    os.environ["LIGHTNING_DP_LEDGER"] = str(home / "ledger.sqlite")
    point = crash.Killer(job.kill_at)
    point.hook_ledger()
    hook_charges(point)
    racing = job.dataset != crash.DATASET
    privacy = DifferentialPrivacy(
        noise_multiplier=crash.event(1).noise_multiplier,
        delta=crash.DELTA,
        expected_batch_size=BATCH,
        reserve_steps=job.reserve,
        accept={"private-monitor": "Driver stops the fit after a number of steps"},
    )
    privacy._noise = WitnessedNoise(home, privacy=privacy, dataset=job.dataset, point=point)
    data = Data(home, dataset=job.dataset)
    trainer = Trainer(
        default_root_dir=home / f"run-{os.getpid()}",
        accelerator="cpu",
        devices=ranks,
        strategy=PrivateDDP(start_method="fork") if ranks > 1 else "auto",
        max_steps=job.num_steps if racing else PLANNED_STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[privacy, Driver(home, job, point)],
    )
    try:
        trainer.fit(Model(), datamodule=data, ckpt_path=job.checkpoint, weights_only=False)
    except BudgetExceeded:
        return 98 if data.rows.trace.exists() else crash.REFUSED  # the loser must not have read a row
    return crash.WON


def fit_on_ranks(home: Path, job: crash.Job) -> int:
    """The same on two ranks, in a process group of their own."""
    os.setpgrp()
    return fit(home, job, ranks=2)


class FitStory(crash.Story):
    """A trial whose random kills mostly come after some steps: a fit takes long to start."""

    def wait_a_while(self) -> None:
        """Until the witness has seen a few more steps, or for a random time before any."""
        if self.rng.random() < 0.2:
            time.sleep(self.rng.uniform(0, PATIENCE))
            return
        witness = self.home / "witness"

        def steps() -> int:
            return witness.read_text().count("\n") if witness.exists() else 0

        enough = steps() + self.rng.randint(1, 40)
        deadline = time.monotonic() + 5 * PATIENCE
        while steps() < enough and time.monotonic() < deadline:
            time.sleep(0.002)

    def _kill_later(self, pid: int) -> None:
        self.wait_a_while()
        super()._kill_later(pid)


class RankStory(FitStory):
    """A trial in which one rank is lost, or all are."""

    def run(self, *, episodes: int) -> None:
        self.tally.trials += 1
        for _ in range(episodes):
            self.lose()
            self.check()
        self.check_epsilon()

    def lose(self) -> None:
        job = self.job(oldest=self.rng.random() < 0.3)
        self.tally.rollbacks += job.checkpoint is not None
        pid = self.start(job)
        self.wait_a_while()
        children = _children(pid)
        victim = self.rng.choice(["all", *range(len(children))])
        if victim == "all":
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
        else:
            os.kill(children[victim], signal.SIGKILL)  # type: ignore[index]
        self.tally.kills += 1
        self.tally.killed_at["all ranks" if victim == "all" else f"rank {victim}"] += 1
        deadline = time.monotonic() + 60
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:  # the others must notice by themselves
                self.tally.unexpected_exits += 1
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.05)
        for child in children:  # ranks that outlived their launcher may still be in a step
            while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)


def _children(pid: int) -> list[int]:
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line) for line in done.stdout.split()]


def overhead(*, steps: int) -> dict[str, Any]:
    """Share of a fit's time that goes to the ledger at the default reservation, on the demo's step."""
    unit = PrivacyUnit(name="record", num_units=UNITS, description="one row")
    plan = PrivacyPlan(
        unit=unit,
        expected_batch_size=BATCH,
        num_steps=steps,
        noise_multiplier=2.0,
        max_grad_norm=1.0,
        delta=crash.DELTA,
    )
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        charges = StepCharges(
            Ledger(Path(folder) / "ledger.sqlite"),
            plan,
            dataset="timed",
            run="timed",
            parent=None,
            reserve_steps=50,
        )
        begin = time.perf_counter()
        for _ in range(steps):
            charges.cover()
            charges.take()
        per_step = 1e3 * (time.perf_counter() - begin) / steps
        charges.close()
    return {"variant": "overhead", "steps": steps, "reserve_steps": 50, "ledger_ms_per_step": per_step}


def main() -> int:
    """Run everything; 0 if nothing was under-reported."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=40, help="stories of one process")
    parser.add_argument("--rank-trials", type=int, default=20, help="stories of two ranks")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of a story")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    arguments = parser.parse_args()
    for name in ("lightning_dp", "lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begin, commit = time.monotonic(), crash.head_commit()
    rows = []
    for variant, trials, story, trainer in (
        (FIT, arguments.trials, FitStory, fit),
        (RANKS, arguments.rank_trials, RankStory, fit_on_ranks),
    ):
        tally = crash.Tally(variant=crash.SOUND)
        for index in range(trials):
            with tempfile.TemporaryDirectory(prefix="crash-", ignore_cleanup_errors=True) as folder:
                rng = random.Random(f"{arguments.seed}/{variant}/{index}")
                story(Path(folder), rng, tally, trainer=trainer, patience=0.05).run(
                    episodes=arguments.episodes
                )
            print(
                f"{variant}: {index + 1} trials, {tally.kills} kills, {tally.under_reports} under-reports",
                file=sys.stderr,
                flush=True,
            )
        rows.append({**tally.row(), "variant": variant})
    rows.append(overhead(steps=2_000))
    crash.write_report(rows, commit=commit, begin=begin, path=arguments.json)
    failures = ("under_reports", "chain_failures", "race_violations", "unexpected_exits")
    ok = not any(row[name] for row in rows[:2] for name in failures)
    print("OK" if ok else "FAILED", file=sys.stderr)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
