"""Kill fits, resumes, samples and tests; no file that they leave may claim a smaller ε than a witness saw.

Every trial is a process of `lightning-dp` in a home of its own, killed by SIGKILL at a named point or at a
random time, or run on a full disk. The witness is a file that the process appends to, and syncs, before each
step is released. Afterwards every ε in every file of the home is read and compared with that of the
witness's steps (PLD), and `read_account` must accept the folder as it lies there.

Processes are forked, so that a trial costs a few steps and not the import of torch: a server runs the real
command line up to the first charge, once for a home, and forks there for each trial, into a copy of the home.
What is killed is the real fit from its first charge on.

A broken fit, whose report counts steps taken instead of steps charged, goes through the same kills.

    python benchmarks/artefacts.py --kills 2000 --seed 1 --json docs/results/artefacts.json
"""

import argparse
import csv
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"

import crash
import torch

from lightning_dp import lightning_cli
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.fit_account import FitAccount
from lightning_dp.cli import main as command_line
from lightning_dp.privacy import report as privacy_report
from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.ledger.lease import Lease
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.tracking.account import read_account

RECIPE = Path(__file__).parents[1] / "conf" / "experiment" / "synthesise_simulator.yaml"
SIGMA, BATCH, UNITS, DELTA, STEPS, RESERVE = 2.0, 6, 30, 1e-2, 12, 5
OPTIONS = (
    f"--trainer.max_steps={STEPS}",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--run.wandb=disabled",
    "--run.test=false",
    "--run.checkpoint_every=2",
    "--model.init_args.net.init_args.hidden_size=8",
    "--model.init_args.net.init_args.depth=1",
    "--model.init_args.net.init_args.patch_size=24",
    "--model.init_args.sampler.init_args.num_steps=1",
    "--data.init_args.windows_per_user=1",
    f"--data.init_args.num_households={UNITS}",
    "--data.init_args.num_days=6",
    "--privacy.target_epsilon=null",
    f"--privacy.noise_multiplier={SIGMA}",
    f"--privacy.delta={DELTA}",
    f"--privacy.expected_batch_size={BATCH}",
    f"--privacy.reserve_steps={RESERVE}",
    "--privacy.spot_check=0",
)
FIT = ("fit", f"--config={RECIPE}", "--run.dir=run", *OPTIONS)
RESUME = (*FIT, "--ckpt_path=run/checkpoints/last.ckpt")
SAMPLE = ("sample", "run", "--num=2", "--output=out.csv", "--start=2024-01-01", "--condition=temperature=5")
TEST = ("test", "--config=run/config.yaml", "--run.dir=run", "--ckpt_path=last")
POINTS = (
    "before reserve",
    "after reserve",
    "before release",
    "after release",
    "before sync",
    "before rename",
    "after rename",
    "before close",
    "after close",
    "after account",
)
SOUND, STEPS_TAKEN = "sound", "report of steps taken"


@cache
def epsilon_of(steps: int) -> float:
    """ε of so many released steps (PLD)."""
    assert released, "known once a first run has been charged"
    return epsilon_pld([replace(released[0], steps=steps)], DELTA)


released: list[GaussianEvent] = []
"""What one step of the runs that are killed releases."""


# --- inside the process that is killed ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a trial ends: at the n-th visit of a point, after some seconds, or with the disk full at a step."""

    point: str | None = None
    visit: int = 1
    after: float | None = None
    full_at_step: int | None = None

    @property
    def kind(self) -> str:
        if self.full_at_step is not None:
            return "full disk"
        return "random time" if self.point is None else self.point


class Hooks:
    """Visits the points, and keeps the witness.

    Attributes:
        release: the method, by its class, in which something private leaves.
        around: other methods, with the point before and the one after each.
    """

    release: tuple[Any, str] = (Ranks, "release")
    around: tuple[tuple[Any, str, str | None, str | None], ...] = (
        (Lease, "reserve", "before reserve", "after reserve"),
        (Lease, "close", "before close", "after close"),
        (Path, "replace", "before rename", "after rename"),
        (lightning_cli.RunFolder, "_checked", None, "after account"),
    )

    def __init__(self, home: Path, death: Death) -> None:
        self._home = home
        self._death = death
        self._visits: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        assert name in POINTS, name
        self._visits[name] += 1
        if self._death.point == name and self._death.visit == self._visits[name]:
            os.kill(os.getpid(), signal.SIGKILL)

    def witness(self) -> None:
        """One more step is about to be released."""
        descriptor = os.open(self._home / "witness", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b"step\n")
        os.fsync(descriptor)
        os.close(descriptor)
        if self._death.full_at_step is not None and _witnessed(self._home) >= self._death.full_at_step:
            _fill(self._home / "disk")

    def install(self) -> None:
        """Put the points into the library, for the rest of this process."""
        owner, name = self.release
        release, sync = getattr(owner, name), os.fsync

        def witnessed_release(*args: Any, **options: Any) -> Any:
            self("before release")
            self.witness()
            released = release(*args, **options)
            self("after release")
            return released

        def visited_sync(descriptor: int) -> None:
            self("before sync")
            sync(descriptor)

        setattr(owner, name, witnessed_release)
        os.fsync = visited_sync  # type: ignore[assignment]
        for other, name, before, after in self.around:
            self._around(other, name, before=before, after=after)

    def _around(self, owner: Any, name: str, *, before: str | None, after: str | None) -> None:
        real = getattr(owner, name)

        def visited(*args: Any, **options: Any) -> Any:
            if before is not None:
                self(before)
            result = real(*args, **options)
            if after is not None:
                self(after)
            return result

        setattr(owner, name, visited)


def plant_steps_taken() -> None:
    """The old fault: a report that counts the steps taken so far, and none that is only reserved."""

    def report(self: Any, *, status: str, charged: int | None = None) -> None:
        seq, digest = self.charges.head
        taken = self.charges.spent
        privacy_report.write_privacy_report(
            self.folder,
            {
                "status": status,
                "epsilon_spent": self.facts.plan.epsilon_after(taken),
                "steps_charged": taken,
                "mechanisms": self._mechanisms(taken),
                "run": self.run,
                "ledger_seq": seq,
                "ledger_hash": digest,
                **self._facts_of_report,
            },
        )

    FitAccount.report = report  # type: ignore[method-assign]


def _fill(disk: Path) -> None:
    """Use up what is left of the disk that the home lies on."""
    with disk.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


def _witnessed(home: Path) -> int:
    path = home / "witness"
    return path.read_text().count("\n") if path.exists() else 0


# --- trials -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One process start in a copy of a home."""

    home: Path
    death: Death


def _enter(home: Path) -> None:
    """Make a home the place of this process."""
    os.chdir(home)
    os.environ["LIGHTNING_DP_LEDGER"] = "ledger.sqlite"
    log = os.open("log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _in_child(work: Callable[[], int]) -> int:
    """Fork and run; the pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _watch(pid: int, trial: Trial) -> str:
    """Wait for a trial, and kill it when its time has come; how it ended."""
    begin = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        passed = time.monotonic() - begin
        if passed > PATIENCE or (trial.death.after is not None and passed > trial.death.after):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hung" if passed > PATIENCE else "killed"
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return "killed"
    if trial.death.full_at_step is not None and (trial.home / "disk").exists():
        (trial.home / "disk").unlink()
        return "disk full"
    return "ended" if os.waitstatus_to_exitcode(status) == 0 else "failed"


def serve(template: Path, arguments: tuple[str, ...], trials: Iterator[Trial], note: Callable) -> int:
    """Run the command line to the first charge of a fit, and each trial from there, in a process of its own.

    Args:
        template: the home that the trials get copies of.
        arguments: of the command line.
        trials: their homes don't exist yet.
        note: told each trial, how it ended and after how many seconds.
    """
    begin = DifferentialPrivacy.on_fit_start

    def on_fit_start(self: DifferentialPrivacy, trainer: Any, module: Any) -> None:
        self.plan.to_dict()  # figures of the plan are the same in all trials
        for steps in range(STEPS + 1):
            self.plan.epsilon_after(steps)
        for trial in trials:
            shutil.copytree(template, trial.home)
            started, pid = time.monotonic(), os.fork()
            if pid:
                note(trial, _watch(pid, trial), time.monotonic() - started)
                continue
            _enter(trial.home)
            Hooks(trial.home, trial.death).install()
            for callback in trainer.checkpoint_callbacks:
                callback.dirpath = str(trial.home / "run" / "checkpoints")
            begin(self, trainer, module)
            return  # and the fit goes on
        os._exit(0)

    def server() -> int:
        DifferentialPrivacy.on_fit_start = on_fit_start  # type: ignore[method-assign]
        _enter(template)
        return command_line(list(arguments))

    _, status = os.waitpid(_in_child(server), 0)
    return os.waitstatus_to_exitcode(status)


def run_command(
    arguments: tuple[str, ...],
    trials: Iterator[Trial],
    template: Path,
    note: Callable,
    *,
    hooks: type[Hooks] = Hooks,
) -> None:
    """The whole command line in each trial."""
    for trial in trials:
        shutil.copytree(template, trial.home)

        def command(trial: Trial = trial) -> int:
            _enter(trial.home)
            hooks(trial.home, trial.death).install()
            return command_line(list(arguments))

        started = time.monotonic()
        note(trial, _watch(_in_child(command), trial), time.monotonic() - started)


# --- what the files say -----------------------------------------------------------------------------


def claims_below(value: Any, least: float, *, where: str) -> Iterator[str]:
    """Every ε in a JSON value that is smaller than `least`."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name.startswith("epsilon") or name.endswith("/epsilon"):
                yield from _below(item, least, where=f"{where}/{name}")
            else:
                yield from claims_below(item, least, where=f"{where}/{name}")


def _below(item: Any, least: float, *, where: str) -> Iterator[str]:
    if isinstance(item, dict):
        for name, one in item.items():
            yield from _below(one, least, where=f"{where}/{name}")
    elif item is not None and not float(item) >= least * (1 - 1e-9):
        yield f"{where} says {item}, and the witness saw {least:.6g}"


def examine(home: Path, *, template: Path) -> tuple[list[str], int]:
    """What claims less than the witness saw, and how many figures were read.

    A sample set that was there when the trial began is of weights of that time, and of what was seen by then.
    """
    found, figures = [], 0
    for path in sorted(home.rglob("*.json")):
        content = json.loads(path.read_text())
        witnessed, before = _witnessed(home), template / path.relative_to(home)
        is_sample = not path.is_relative_to(home / "run")
        if is_sample and before.exists() and before.read_bytes() == path.read_bytes():
            witnessed = _witnessed(template)
        # A result that was set aside says of how many steps it is.
        steps = content["steps"] if path.name == "results.before_resume.json" else witnessed
        below = list(claims_below(content, epsilon_of(min(steps, witnessed)), where=path.name))
        found += below
        figures += path.read_text().count('"epsilon')
    witnessed, checkpoint = _witnessed(home), home / "run" / "checkpoints" / "last.ckpt"
    if checkpoint.exists():
        content = torch.load(checkpoint, weights_only=True)
        saved = content["callbacks"]["DifferentialPrivacy"]
        found += _below(saved["epsilon"], epsilon_of(content["global_step"]), where=checkpoint.name)
        figures += 1
    metrics = home / "run" / "metrics.csv"
    if metrics.exists():
        with metrics.open() as file:
            for row in csv.DictReader(file):
                if not (row.get("privacy/epsilon") and row.get("privacy/steps")):
                    continue
                steps = int(float(row["privacy/steps"]))
                found += _below(row["privacy/epsilon"], epsilon_of(steps) * (1 - 1e-5), where="metrics.csv")
                figures += 1
    report = home / "run" / "privacy.json"
    if witnessed and not report.exists():
        found.append(f"privacy.json is missing, and the witness saw {witnessed} steps")
    if report.exists():
        os.environ["LIGHTNING_DP_LEDGER"] = str(home / "ledger.sqlite")
        ((dataset, unit),) = Ledger().accounts()
        charged = sum(one.steps for one in Ledger().events(dataset, unit=unit))
        claimed = float(json.loads(report.read_text())["epsilon_spent"])
        found += _below(claimed, epsilon_of(charged) * (1 - 1e-6), where="privacy.json against the ledger")
    return found, figures


def refused(home: Path) -> str | None:
    """Why the folder as it lies is not believed, where it isn't."""
    os.environ["LIGHTNING_DP_LEDGER"] = str(home / "ledger.sqlite")
    try:
        read_account(home / "run")
    except ValueError as error:
        return str(error)
    return None


_VISITS = {
    "before reserve": 4,
    "after reserve": 4,
    "before release": STEPS,
    "after release": STEPS,
    "before sync": 40,
    "before rename": 20,
    "after rename": 20,
    "before close": 1,
    "after close": 1,
    "after account": 2,
}
_IN_FIT = tuple(name for name in POINTS if name != "after account")
_POINTS_OF = {
    "fit": _IN_FIT,
    "resume": _IN_FIT,
    "sample": ("before rename", "after rename", "before sync"),
    "test": ("after account", "before rename", "after rename", "before sync"),
}

# --- stories ----------------------------------------------------------------------------------------


class Harness:
    """Stories until there were enough kills; each result is a line of a file, so that it can go on."""

    hooks = Hooks
    forked_at_first_charge = ("fit", "resume")
    points = _POINTS_OF

    def __init__(self, folder: Path, *, seed: int, variant: str, progress: Path | None) -> None:
        self._folder = folder
        self._variant = variant
        self._progress = progress
        self._number = 0
        self._durations = {
            "fit": 0.5,
            "resume": 0.5,
            "sample": 3.0,
            "test": 5.0,
            "evolve": 2.0,
            "evaluate": 5.0,
        }
        self._small = _small_disk(folder / "small")
        self.disk = "tmpfs" if self._small else "none"
        self.rows: list[dict[str, Any]] = []
        if progress is not None and progress.exists():
            self.rows = [json.loads(line) for line in progress.read_text().splitlines()]
        self._rng = random.Random(f"{seed}/{variant}/{len(self.rows)}")

    @property
    def kills(self) -> int:
        return sum(row["ended"] in ("killed", "disk full") for row in self.rows)

    def close(self) -> None:
        if self._small is not None:
            subprocess.run(["umount", str(self._small)], check=False)

    def story(self, *, fits: int, resumes: int, samples: int, tests: int) -> None:
        """A fit, what is made of its folders, and resumes of some of them."""
        home = self._new("start")
        home.mkdir()
        killed = self._trials("fit", home, FIT, number=fits)
        for round_ in range(2):
            usable = [one for one in killed if (one / "run" / "checkpoints" / "last.ckpt").exists()]
            if not usable:
                return
            if round_ == 0:
                self._trials("sample", self._rng.choice(usable), SAMPLE, number=samples)
                self._trials("test", self._rng.choice(usable), TEST, number=tests)
            begun = [one for one in usable if _charged(one) <= STEPS - RESERVE // 2]
            if resumes and begun:
                killed = self._trials("resume", self._rng.choice(begun), RESUME, number=resumes)

    def _trials(self, command: str, home: Path, arguments: tuple[str, ...], *, number: int) -> list[Path]:
        """Trials from a home; the homes that they left."""
        template = self._new(f"{command}-template")
        shutil.copytree(home, template)
        planned = iter([self._plan(command) for _ in range(number)])
        progress = self._folder / "rows.jsonl"
        progress.unlink(missing_ok=True)

        def note(trial: Trial, ended: str, seconds: float) -> None:
            found, figures = examine(trial.home, template=template)
            row = {
                "variant": self._variant,
                "command": command,
                "death": trial.death.kind,
                "ended": ended,
                "seconds": round(seconds, 3),
                "witnessed": _witnessed(trial.home),
                "figures": figures,
                "below": found,
                "refused": refused(trial.home) if (trial.home / "run" / "privacy.json").exists() else None,
            }
            if ended in ("failed", "hung"):
                row["log"] = (trial.home / "log.txt").read_text()[-400:]
            with progress.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if trial.home.is_relative_to(self._folder / "small"):
                shutil.rmtree(trial.home)

        if command in self.forked_at_first_charge:
            code = serve(template, arguments, planned, note)
            if code:
                log = (template / "log.txt").read_text()
                raise RuntimeError(f"{command} ended with {code}: {log[-2000:]}")
        else:
            run_command(arguments, planned, template, note, hooks=self.hooks)
        new = progress.read_text().splitlines() if progress.exists() else []
        self.rows += [json.loads(line) for line in new]
        if self._progress is not None:
            with self._progress.open("a") as file:
                file.writelines(line + "\n" for line in new)
        lasted = [json.loads(line)["seconds"] for line in new]
        self._durations[command] = max([self._durations[command] / 2, *lasted])
        shutil.rmtree(template)
        return [trial for trial in self._homes if trial.exists()]

    def _plan(self, command: str) -> Trial:
        chance = self._rng.random()
        home = self._new("trial")
        if chance < 0.1 and self._small is not None and command in self.forked_at_first_charge:
            death = Death(full_at_step=self._rng.randint(1, STEPS))
            return Trial(home=self._small / home.name, death=death)
        if chance < 0.35:
            return Trial(home=home, death=Death(after=self._rng.uniform(0, self._durations[command])))
        name = self._rng.choice(self.points[command])
        return Trial(home=home, death=Death(point=name, visit=self._rng.randint(1, _VISITS[name])))

    def _new(self, what: str) -> Path:
        self._number += 1
        return self._folder / f"{self._number}-{what}"

    @property
    def _homes(self) -> list[Path]:
        return sorted(self._folder.glob("*-trial"))


def _charged(home: Path) -> int:
    return json.loads((home / "run" / "privacy.json").read_text())["steps_charged"]


PATIENCE = 120.0


def _small_disk(path: Path) -> Path | None:
    """A disk of a few megabytes, where this user may mount one."""
    path.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], capture_output=True, check=False
    )
    return path if done.returncode == 0 else None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one variant for the result file."""
    dead = [row for row in rows if row["ended"] in ("killed", "disk full")]
    caught = [row for row in dead if row["below"]]
    return {
        "processes": len(rows),
        "kills": len(dead),
        "by_command": dict(Counter(row["command"] for row in dead)),
        "by_death": dict(Counter(row["death"] for row in dead)),
        "ended": dict(Counter(row["ended"] for row in rows)),
        "figures_read": sum(row["figures"] for row in rows),
        "steps_witnessed": sum(row["witnessed"] for row in rows),
        "processes_with_a_claim_below": sum(bool(row["below"]) for row in rows),
        "examples": [row["below"][0] for row in caught[:3]],
        "folders_refused": sum(row["refused"] is not None for row in rows),
        "refused_examples": sorted({row["refused"][-160:] for row in rows if row["refused"]})[:3],
    }


def main() -> int:
    """Run both variants; 0 if nothing sound claimed too little and every planted fault was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=2000, help="of the sound fit")
    parser.add_argument("--planted", type=int, default=40, help="kills of the broken fit")
    parser.add_argument("--fits", type=int, default=60, help="trials of a story")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no story after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", type=Path, help="a file of results so far: go on from there")
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    for name in ("lightning_dp", "lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begin, commit = time.monotonic(), crash.head_commit()
    with tempfile.TemporaryDirectory(prefix="artefacts-", ignore_cleanup_errors=True) as folder:
        warm_up(Path(folder))
    with tempfile.TemporaryDirectory(prefix="artefacts-", ignore_cleanup_errors=True) as folder:
        sound = Harness(Path(folder), seed=arguments.seed, variant=SOUND, progress=arguments.progress)
        try:
            while sound.kills < arguments.kills and time.monotonic() - begin < 60 * arguments.minutes:
                fits = min(arguments.fits, arguments.kills)
                sound.story(fits=fits, resumes=fits // 2, samples=max(1, fits // 8), tests=max(1, fits // 16))
                for path in Path(folder).glob("*-*"):
                    shutil.rmtree(path, ignore_errors=True)
                bad = sum(bool(row["below"]) for row in sound.rows)
                print(f"{sound.kills} kills, {bad} claims below", file=sys.stderr, flush=True)
        finally:
            sound.close()
    with tempfile.TemporaryDirectory(prefix="artefacts-", ignore_cleanup_errors=True) as folder:
        planted = Planted(Path(folder), seed=arguments.seed, variant=STEPS_TAKEN, progress=None)
        planted.close()
        plant_steps_taken()
        home = Path(folder) / "0-start"
        home.mkdir()
        planted._trials("fit", home, FIT, number=arguments.planted)
    if arguments.progress is not None:
        lines = "".join(json.dumps(row) + "\n" for row in planted.rows)
        arguments.progress.with_suffix(".planted.jsonl").write_text(lines)
    rows = [{"variant": SOUND, "disk": sound.disk, **summary(sound.rows)}]
    rows.append({"variant": STEPS_TAKEN, **summary(planted.rows)})
    crash.write_report(rows, commit=commit, begin=begin, path=arguments.json)
    ok = (
        not rows[0]["processes_with_a_claim_below"]
        and not rows[0]["folders_refused"]
        and rows[1]["processes_with_a_claim_below"] == rows[1]["kills"] == arguments.planted
    )
    print("OK" if ok else "FAILED", file=sys.stderr)
    return 0 if ok else 1


def warm_up(home: Path) -> None:
    """A fit and what follows it in this process: what they import late is there when trials are forked."""
    here = Path.cwd()
    os.chdir(home)
    os.environ["LIGHTNING_DP_LEDGER"] = "ledger.sqlite"
    with (home / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        for arguments in (FIT, SAMPLE, TEST):
            if command_line(list(arguments)):
                log.flush()
                raise RuntimeError(f"{arguments[0]} failed: {(home / 'log.txt').read_text()[-2000:]}")
    report = json.loads((home / "run" / "privacy.json").read_text())
    ((dataset, unit),) = Ledger().accounts()
    (event,) = Ledger().events(dataset, unit=unit, kind="reserve")[:1]
    rate = BATCH / report["num_units"]  # B / N; households of the other splits are no units
    assert isinstance(event, GaussianEvent)
    assert abs(event.sampling_rate - rate) < 1e-12
    released.append(GaussianEvent(noise_multiplier=SIGMA, sampling_rate=rate, steps=1))
    for steps in range(STEPS + 1):
        epsilon_of(steps)
    os.chdir(here)


class Planted(Harness):
    """Kills of the broken fit, each after a step that was released."""

    def _plan(self, command: str) -> Trial:
        name = self._rng.choice(("after release", "before release"))
        visit = self._rng.randint(2, STEPS - 1)
        return Trial(home=self._new("trial"), death=Death(point=name, visit=visit))


if __name__ == "__main__":
    sys.exit(main())
