"""Kill, roll back, fork and race a toy trainer; its ledger must never say less than a witness saw.

Each trial is a story on one fresh ledger: processes that use the ledger as the Lightning callback
does (reserve K steps, touch private data once a step, write checkpoints that carry the ledger's head,
resume from one of them) are killed with SIGKILL at random moments and at named points, restarted from
the newest or an older checkpoint, run twice from the same checkpoint at once, and raced for the last
of a budget. Before each touch the process appends to a witness file and syncs it. After every episode:
the chain verifies, and for every run the ledger's steps are at least the witness's; after every trial:
the ledger's ε (PLD) is at least the witness's.

Two broken trainers go through the same stories, to show that the harness sees an under-report.

SIGKILL leaves the operating system's page cache alone: a power cut is not simulated here.

    python benchmarks/crash.py --trials 250 --seed 1 --json docs/results/crash.json
"""

import argparse
import json
import logging
import os
import platform
import random
import shlex
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_dp.privacy.accounting import Event, GaussianEvent, epsilon_pld
from lightning_dp.privacy.ledger import (
    BudgetExceeded,
    Ledger,
    LedgerError,
    LedgerMissing,
    filter_epsilon,
    storage as ledger_storage,
)

DATASET, UNIT, DELTA = "toy", "record", 1e-5
SOUND, RESERVE_LATE, COUNTER = "sound", "reserve after touching", "counter in the checkpoint"
POINTS = (
    "before reserve",
    "before commit",
    "after commit",
    "after anchor",
    "before touch",
    "after touch",
    "inside checkpoint",
    "before rename",
    "after rename",
    "before close",
    "after close",
)
WON, REFUSED = 0, 3


def event(steps: int) -> GaussianEvent:
    """What `steps` steps of the toy release."""
    return GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=steps)


# --- the toy trainer: one process -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process start.

    Attributes:
        run: id of the run.
        checkpoint: file to resume from.
        num_steps: where training ends; resumed steps count.
        reserve: K, steps per reservation.
        kill_at: a named point and which visit of it kills the process.
        variant: SOUND or a broken trainer.
        dataset: what is charged.
        with_plan: declare all steps when the lease is taken.
    """

    run: str
    checkpoint: Path | None = None
    num_steps: int = 10**6
    reserve: int = 10
    kill_at: tuple[str, int] | None = None
    variant: str = SOUND
    dataset: str = DATASET
    with_plan: bool = False


class Killer:
    """SIGKILLs the process at the n-th visit of a named point."""

    def __init__(self, kill_at: tuple[str, int] | None) -> None:
        self.kill_at = kill_at
        self.visits: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        assert name in POINTS, name
        self.visits[name] += 1
        if self.kill_at == (name, self.visits[name]):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook_ledger(self) -> None:
        """Visit the points that lie inside the library."""
        insert, anchor = ledger_storage.LedgerFile.insert, ledger_storage.append_anchor

        def insert_then_point(*args: Any, **kwargs: Any) -> Any:
            entry = insert(*args, **kwargs)
            self("before commit")
            return entry

        def anchor_between_points(*args: Any) -> None:
            self("after commit")
            anchor(*args)
            self("after anchor")

        setattr(ledger_storage.LedgerFile, "insert", insert_then_point)  # noqa: B010
        setattr(ledger_storage, "append_anchor", anchor_between_points)  # noqa: B010


def train(home: Path, job: Job) -> int:
    """Train as the callback would; returns the process's exit code."""
    point = Killer(job.kill_at)
    point.hook_ledger()
    state: dict[str, Any] = {"step": 0, "head": None}
    if job.checkpoint is not None:
        state = json.loads(job.checkpoint.read_text())
    ledger = Ledger(home / "ledger.sqlite")
    ledger.register(job.dataset, unit=UNIT, delta=DELTA)
    parent = (state["head"][0], state["head"][1]) if state["head"] else None
    plan = [event(job.num_steps)] if job.with_plan else []
    try:
        lease = ledger.open_run(job.dataset, unit=UNIT, run=job.run, parent=parent, plan=plan)
    except BudgetExceeded:
        return REFUSED
    witness = os.open(home / "witness", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    covered, last, late = 0, None, 0
    while state["step"] < job.num_steps:
        if job.variant == SOUND and covered == 0:
            point("before reserve")
            covered = min(job.reserve, job.num_steps - state["step"])
            try:
                last = lease.reserve(event(covered))
            except BudgetExceeded:
                return REFUSED
        point("before touch")
        os.write(witness, f"{job.dataset} {job.run}\n".encode())
        os.fsync(witness)
        point("after touch")
        state["step"] += 1
        covered = max(0, covered - 1)
        late += 1
        if job.variant == RESERVE_LATE and late == job.reserve:
            lease.reserve(event(late))
            late = 0
        if state["step"] % 7 == 0:
            _save(home, job.run, {**state, "head": lease.head}, point)
    point("before close")
    lease.close(steps_taken={last.seq: last.detail["event"]["steps"] - covered} if last else {})
    point("after close")
    return WON


def _save(home: Path, run: str, state: dict[str, Any], point: Killer) -> None:
    temporary = home / f"{os.getpid()}.tmp"
    text = json.dumps(state)
    with temporary.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        point("inside checkpoint")
        file.write(text[len(text) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    point("before rename")
    temporary.rename(checkpoint_path(home, run, step=state["step"]))
    point("after rename")


def checkpoint_path(home: Path, run: str, *, step: int) -> Path:
    """Sorts by time; its name says the step."""
    return home / f"{run}-{time.monotonic_ns():020d}-{step}.ckpt"


def step_of(checkpoint: Path | None) -> int:
    """The step that a checkpoint was written at; 0 for none."""
    return int(checkpoint.stem.rsplit("-", 1)[1]) if checkpoint else 0


# --- the driver: many processes -------------------------------------------------------------------


def start(home: Path, job: Job, trainer: Callable[[Path, Job], int] = train) -> int:
    """Fork a process that trains; the driver holds no connection, so the fork is sound."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = trainer(home, job)
    except BaseException as error:
        print(f"trainer {job}: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Tally:
    """What happened in all trials of one variant."""

    variant: str
    trials: int = 0
    kills: int = 0
    rollbacks: int = 0
    forks: int = 0
    races: int = 0
    race_violations: int = 0
    clean_ends: int = 0
    checks: int = 0
    under_reports: int = 0
    trials_under_reported: int = 0
    chain_failures: int = 0
    unexpected_exits: int = 0
    points_tried: int = 0
    killed_at: Counter[str] = field(default_factory=Counter)
    touched: int = 0
    charged: int = 0
    ratios: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        fields = {k: v for k, v in vars(self).items() if k not in ("ratios", "killed_at")}
        ratios = sorted(self.ratios)
        return {
            **fields,
            "events": self.kills + self.rollbacks + self.forks + self.races,
            "killed_at": dict(sorted(self.killed_at.items())),
            "epsilon_reported_over_true_min": ratios[0] if ratios else None,
            "epsilon_reported_over_true_median": statistics.median(ratios) if ratios else None,
            "epsilon_reported_over_true_max": ratios[-1] if ratios else None,
        }


class Story:
    """One trial on one fresh ledger.

    Args:
        home: an empty folder.
        rng: chooses what happens.
        tally: counts it.
        trainer: what one process does.
        patience: seconds within which a process is killed at random.
    """

    def __init__(
        self,
        home: Path,
        rng: random.Random,
        tally: Tally,
        *,
        trainer: Callable[[Path, Job], int] = train,
        patience: float = 0.04,
    ) -> None:
        self.home = home
        self.trainer = trainer
        self.patience = patience
        self.rng = rng
        self.tally = tally
        self.ledger = Ledger(home / "ledger.sqlite")

    def run(self, *, episodes: int) -> None:
        """Play the episodes, checking after each."""
        self.tally.trials += 1
        before = self.tally.under_reports
        acts: list[Callable[[], None]] = [
            self.kill_at_random,
            self.kill_at_random,
            self.kill_at_point,
            self.kill_at_point,
            self.roll_back,
            self.fork,
            self.race,
            self.end_cleanly,
        ]
        for _ in range(episodes):
            act = self.rng.choice(acts)
            if act == self.race and self.tally.variant != SOUND:
                act = self.kill_at_random
            act()
            self.check()
        self.check_epsilon()
        self.tally.trials_under_reported += self.tally.under_reports > before

    def start(self, job: Job) -> int:
        """Fork a process for `job`."""
        return start(self.home, job, self.trainer)

    # episodes

    def job(self, *, oldest: bool = False, **changes: Any) -> Job:
        run = self.rng.choice(("a", "b"))
        checkpoints = sorted(self.home.glob(f"{run}-*.ckpt"))
        chosen = None
        if checkpoints:
            chosen = self.rng.choice(checkpoints[:-1] or checkpoints) if oldest else checkpoints[-1]
        reserve = self.rng.choice((1, 3, 10, 50))
        return Job(
            **{
                "run": run,
                "checkpoint": chosen,
                "reserve": reserve,
                "variant": self.tally.variant,
                **changes,
            }
        )

    def kill_at_random(self) -> None:
        self._kill_later(self.start(self.job()))

    def roll_back(self) -> None:
        job = self.job(oldest=True)
        self.tally.rollbacks += job.checkpoint is not None
        self._kill_later(self.start(job))

    def fork(self) -> None:
        job = self.job()
        pids = [self.start(job), self.start(job)]
        self.tally.forks += 1
        for pid in pids:
            self._kill_later(pid)

    def kill_at_point(self) -> None:
        # A trainer that reserves late has no point "before reserve": it would never be killed there.
        points = [p for p in POINTS if p != "before reserve" or self.tally.variant == SOUND]
        name = points[self.tally.points_tried % len(points)]
        self.tally.points_tried += 1
        visit = self.rng.randint(1, 4)
        job = self.job(kill_at=(name, visit))
        step = step_of(job.checkpoint)
        if name in ("before close", "after close"):
            job = Job(**{**vars(job), "kill_at": (name, 1), "num_steps": step + self.rng.randint(1, 30)})
        else:
            job = Job(**{**vars(job), "num_steps": step + 400})
        code = wait(self.start(job))
        if code == -signal.SIGKILL:
            self.tally.kills += 1
            self.tally.killed_at[name] += 1
        elif code != WON:
            self.tally.unexpected_exits += 1

    def end_cleanly(self) -> None:
        job = self.job()
        step = step_of(job.checkpoint)
        job = Job(**{**vars(job), "num_steps": step + self.rng.randint(1, 40)})
        if wait(self.start(job)) == WON:
            self.tally.clean_ends += 1
        else:
            self.tally.unexpected_exits += 1

    def race(self) -> None:
        """Four processes for a budget that holds one of them; exactly one may touch the data."""
        dataset = f"race-{self.tally.races}"
        self.ledger.register(dataset, unit=UNIT, delta=DELTA, limit_epsilon=_limit_for(20))
        changes: dict[str, Any] = {"num_steps": 20, "dataset": dataset}
        # With a plan the losers are refused as they start; without one, at their first reservation.
        changes |= self.rng.choice(({"reserve": 20}, {"reserve": 5, "with_plan": True}))
        jobs = [Job(run=f"racer-{i}", **changes) for i in range(4)]
        codes = [wait(pid) for pid in [self.start(job) for job in jobs]]
        self.tally.races += 1
        self.tally.race_violations += sorted(codes) != [WON, REFUSED, REFUSED, REFUSED]

    def _kill_later(self, pid: int) -> None:
        time.sleep(self.rng.uniform(0, self.patience))
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == -signal.SIGKILL:
            self.tally.kills += 1
            self.tally.killed_at["random"] += 1
        else:
            self.tally.unexpected_exits += 1

    # checks

    def witnessed(self) -> Counter[tuple[str, str]]:
        """(data set, run) → touches, as counted outside the trainer."""
        path = self.home / "witness"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter((line.split()[0], line.split()[1]) for line in lines)

    def reported(self, dataset: str, run: str) -> int:
        """Steps that the variant under test reports for a run."""
        if self.tally.variant == COUNTER:
            checkpoints = sorted(self.home.glob(f"{run}-*.ckpt"))
            return step_of(checkpoints[-1]) if checkpoints else 0
        try:
            return _steps(self.ledger.events(dataset, unit=UNIT, run=run))
        except LedgerError:
            return 0

    def check(self) -> None:
        """Chain verifies; no run has fewer steps in the ledger than the witness saw."""
        self.tally.checks += 1
        try:
            self.ledger.verify()
        except LedgerMissing:  # killed before the ledger began: then nothing may have been touched
            self.tally.chain_failures += bool(self.witnessed())
        except LedgerError as error:
            print(f"chain: {error}", file=sys.stderr)
            self.tally.chain_failures += 1
        for (dataset, run), touches in self.witnessed().items():
            if self.reported(dataset, run) < touches:
                self.tally.under_reports += 1

    def check_epsilon(self) -> None:
        """The data set's ε is at least what the witness saw."""
        touches = sum(n for (dataset, _), n in self.witnessed().items() if dataset == DATASET)
        if not touches:
            return
        true = epsilon_pld([event(touches)], DELTA)
        if self.tally.variant == COUNTER:
            steps = sum(self.reported(DATASET, run) for run in ("a", "b"))
            said = epsilon_pld([event(steps)], DELTA)
        else:
            steps = _steps(self.ledger.events(DATASET, unit=UNIT))
            said = self.ledger.epsilon(DATASET, unit=UNIT)
        self.tally.touched += touches
        self.tally.charged += steps
        self.tally.ratios.append(said / true)
        self.tally.under_reports += said < true


def _steps(events: list[Event]) -> int:
    return sum(e.steps for e in events if isinstance(e, GaussianEvent))


def _limit_for(steps: int) -> float:
    """A limit that holds `steps` steps once and not twice."""
    limit = 0.01
    while filter_epsilon([event(steps)], DELTA, limit_epsilon=limit) > limit:
        limit *= 1.01
    assert filter_epsilon([event(2 * steps)], DELTA, limit_epsilon=limit) > limit
    return limit


def run_trials(*, trials: int, episodes: int, seed: int, variant: str, progress: bool = False) -> Tally:
    """Play `trials` stories of one variant."""
    tally = Tally(variant=variant)
    for index in range(trials):
        with tempfile.TemporaryDirectory(prefix="crash-") as folder:
            Story(Path(folder), random.Random(f"{seed}/{variant}/{index}"), tally).run(episodes=episodes)
        if progress and (index + 1) % 10 == 0:
            print(
                f"{variant}: {index + 1} trials, {tally.kills} kills, {tally.under_reports} under-reports",
                file=sys.stderr,
                flush=True,
            )
    return tally


def measure_latency(*, reservations: int, earlier: int) -> dict[str, Any]:
    """Milliseconds for one reservation with a limit to check, and for a bare 4 KiB write and sync."""
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        ledger.register(DATASET, unit=UNIT, delta=DELTA, limit_epsilon=1e6)
        with ledger.open_run(DATASET, unit=UNIT, run="earlier") as lease:
            for _ in range(earlier):
                lease.reserve(event(50))
        begin = time.perf_counter()
        lease = ledger.open_run(DATASET, unit=UNIT, run="timed")
        opened = 1e3 * (time.perf_counter() - begin)
        times, bare = [], []
        for _ in range(reservations):
            begin = time.perf_counter()
            lease.reserve(event(50))
            times.append(1e3 * (time.perf_counter() - begin))
        lease.close()
        with (Path(folder) / "bare").open("wb") as file:
            for _ in range(reservations):
                begin = time.perf_counter()
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
                bare.append(1e3 * (time.perf_counter() - begin))
    times.sort()
    return {
        "variant": "latency",
        "earlier_entries": earlier,
        "reservations": reservations,
        "reserve_ms_median": statistics.median(times),
        "reserve_ms_p95": times[int(0.95 * len(times))],
        "reserve_ms_max": times[-1],
        "open_run_ms": opened,
        "write_and_fsync_ms_median": statistics.median(bare),
    }


def head_commit() -> str | None:
    """What is committed now, as the code that is loaded now; None outside of a checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def write_report(rows: list[dict[str, Any]], *, commit: str | None, begin: float, path: Path | None) -> None:
    """Print the result file and, if asked to, keep it.

    Args:
        rows: of the result.
        commit: of the code that ran.
        begin: `time.monotonic()` at its start.
        path: where to write it, or None.
    """
    report = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - begin, 1),
        "rows": rows,
    }
    text = json.dumps(report, indent=2) + "\n"
    if path:
        path.write_text(text)
    print(text, end="")


def main() -> int:
    """Run everything; 0 if the sound ledger never under-reported and both broken ones were caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=250, help="stories of the sound trainer")
    parser.add_argument("--episodes", type=int, default=12, help="episodes of a story")
    parser.add_argument("--broken-trials", type=int, default=20, help="stories of each broken trainer")
    parser.add_argument("--reservations", type=int, default=500, help="reservations to time; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    arguments = parser.parse_args()
    logging.getLogger("lightning_dp").setLevel(logging.ERROR)  # a new ledger a trial is no news here
    begin, commit = time.monotonic(), head_commit()
    rows = []
    for variant, trials in (
        (SOUND, arguments.trials),
        (RESERVE_LATE, arguments.broken_trials),
        (COUNTER, arguments.broken_trials),
    ):
        tally = run_trials(
            trials=trials, episodes=arguments.episodes, seed=arguments.seed, variant=variant, progress=True
        )
        rows.append(tally.row())
    for earlier in (0, 5000) if arguments.reservations else ():
        rows.append(measure_latency(reservations=arguments.reservations, earlier=earlier))
    write_report(rows, commit=commit, begin=begin, path=arguments.json)
    sound, *broken = rows[:3]
    failures = ("under_reports", "chain_failures", "race_violations", "unexpected_exits")
    ok = not any(sound[name] for name in failures) and all(row["under_reports"] for row in broken)
    print("OK" if ok else "FAILED", file=sys.stderr)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
