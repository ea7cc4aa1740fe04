"""Which trials a sweep has and what became of them: an Optuna study in the sweep's folder.

Agents on one machine share an SQLite study; agents on several share a journal, since SQLite's locks are
unreliable on network file systems. Who works on a trial is decided by file locks (`claim.py`), which the
kernel drops when a process dies, whatever it dies of.
"""

import contextlib
import fcntl
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import QueuePool

from lightning_dp.sweeps.parameters import Path as ParameterPath, assemble
from lightning_dp.sweeps.sweep import Sweep
from lightning_dp.sweeps.trial_lock import TrialLock

_NAME = "sweep"
_SQLITE, _JOURNAL = "study.sqlite", "study.journal"


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: COMPLETE, PRUNED or FAIL.
        value: of the sweep's metric, or None.
        reason: of a failure, in one sentence.
    """

    state: TrialState
    value: float | None = None
    reason: str = ""


@final
class SweepStudy:
    """The study of one sweep in its folder, shared by every agent that opens it.

    Args:
        sweep: what is swept.
        folder: of the sweep; made if need be.
        limit: most trials in all, or None for the whole grid, or the file's `run_cap`.
        across_hosts: whether agents on several machines share the folder; settled by the first one.
        retry_failed: whether points of a grid whose trials have failed get a new trial.

    Raises:
        ValueError: the folder holds another sweep, or nothing ends a random or Bayesian search.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        folder: Path,
        limit: int | None,
        across_hosts: bool = False,
        retry_failed: bool = False,
    ) -> None:
        caps = [cap for cap in (limit, sweep.run_cap) if cap is not None]
        self._cap = min(caps) if caps else None
        if sweep.method != "grid" and self._cap is None:
            raise ValueError(
                f"sweep {sweep.name!r} searches by {sweep.method}, which never ends: give --limit, or "
                "run_cap in the file"
            )
        self.sweep = sweep
        self.folder = folder
        # Optuna announces every trial; the runner says more, and in its own place.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._study = self._open(across_hosts=across_hosts, retry_failed=retry_failed)

    def _open(self, *, across_hosts: bool, retry_failed: bool) -> optuna.Study:
        metric = self.sweep.metric
        study = optuna.create_study(
            study_name=_NAME,
            storage=_storage(self.folder, across_hosts=across_hosts),
            sampler=RandomSampler(),  # replaced for each trial
            pruner=self._pruner(),
            direction=metric.goal if metric else "minimize",
            load_if_exists=True,
        )
        fingerprint = study.user_attrs.get("sweep")
        if fingerprint is None:
            study.set_user_attr("sweep", self.sweep.fingerprint())
        elif fingerprint != self.sweep.fingerprint():
            raise ValueError(
                f"{self.folder} holds trials of another sweep, or of this one with other parameters: choose "
                "another --out, or go back to the file and --override it was begun with"
            )
        if self.sweep.method == "grid":
            # A process may have been killed half way through this, so it is done as often as it is needed.
            known = {
                trial.user_attrs.get("point")
                for trial in study.get_trials(deepcopy=False)
                if not (retry_failed and trial.state == TrialState.FAIL)
            }
            for number, point in enumerate(self.sweep.points()):
                if number not in known:
                    values = {_name(path): json.dumps(value) for path, value in point.items()}
                    study.enqueue_trial(values, user_attrs={"point": number})
        return study

    def trials(self) -> list[FrozenTrial]:
        """All trials, those that wait included."""
        return self._study.get_trials(deepcopy=False)

    @property
    def num_trials(self) -> int:
        """How many there will be: the grid's points and repetitions, or as many as a search may draw."""
        sizes = [] if self._cap is None else [self._cap]
        if self.sweep.method == "grid":
            sizes.append(len(self.trials()))
        return min(sizes)

    def unfinished_points(self) -> list[dict[ParameterPath, Any]] | None:
        """The points of a grid that are still to be run, interrupted ones included; None for a search."""
        if self.sweep.method != "grid":
            return None
        points = list(self.sweep.points())
        return [
            points[trial.user_attrs["point"]]
            for trial in self.trials()[: self._cap]
            if not trial.state.is_finished()
        ]

    def failed(self) -> list[FrozenTrial]:
        """The trials that have failed, but for those whose point another trial has brought to an end."""
        ended = {
            trial.user_attrs.get("point", trial.number)
            for trial in self.trials()
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        }
        return [
            trial
            for trial in self.trials()
            if trial.state == TrialState.FAIL and trial.user_attrs.get("point", trial.number) not in ended
        ]

    def interrupted(self) -> Iterator[tuple[optuna.trial.Trial, TrialLock]]:
        """Trials that nobody looks after any more, each now claimed by this process."""
        for frozen in self.trials():
            if frozen.state != TrialState.RUNNING:
                continue
            # Under the lock, as in `next`: between a trial's first state and its claim nobody else comes.
            with self._locked():
                lock = TrialLock.take(self.trial_folder(frozen.number))
                ended = self.trials()[frozen.number].state != TrialState.RUNNING
            if lock is None:
                continue
            if ended:  # by its agent, between our two looks
                lock.release()
            else:
                yield optuna.trial.Trial(self._study, frozen._trial_id), lock

    def next(self) -> tuple[optuna.trial.Trial, TrialLock] | None:
        """Claim a trial that nobody has begun; None where there is none left."""
        with self._locked():
            trials = self.trials()
            begun = sum(trial.state != TrialState.WAITING for trial in trials)
            if self._cap is not None and begun >= self._cap:
                return None
            if self.sweep.method == "grid" and begun == len(trials):
                return None
            # By the trial's number, so that a study that goes on does not draw the same points again.
            self._study.sampler = self._sampler(seed=begun)
            trial = self._study.ask()
            self.point(trial)
            lock = TrialLock.take(self.trial_folder(trial.number))
        assert lock is not None, "a new trial's folder is locked by somebody else"
        return trial, lock

    def point(self, trial: optuna.trial.Trial) -> dict[ParameterPath, Any]:
        """The trial's value of every parameter; drawn on the first call, the same ever after."""
        return {path: leaf.draw(trial, _name(path)) for path, leaf in self.sweep.parameters.items()}

    def tell(self, trial: optuna.trial.Trial, outcome: Outcome) -> None:
        """Record how a trial ended."""
        if outcome.reason:
            trial.set_user_attr("reason", outcome.reason)
        value = outcome.value
        if outcome.state == TrialState.COMPLETE and value is None:
            value = 0.0  # a sweep without a metric; Optuna wants a number, and nobody reads it
        self._study.tell(trial, value if outcome.state == TrialState.COMPLETE else None, state=outcome.state)

    def trial_folder(self, number: int) -> Path:
        """`trials/NNN-…`, which is the run's folder; named after the trial's values on first sight."""
        place = self.folder / "trials"
        found = sorted(place.glob(f"{number:03d}-*"))
        if found:
            return found[0]
        frozen = self.trials()[number]
        values = assemble(self.point(optuna.trial.Trial(self._study, frozen._trial_id)))
        varying = [
            _short(value)
            for path, leaf in self.sweep.parameters.items()
            if len(leaf.extremes()) > 1 and (value := _follow(values, path)) is not None
        ]
        return place / "-".join([f"{number:03d}", *(varying or ["trial"])])[:80]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sampler(self, *, seed: int) -> BaseSampler:
        if self.sweep.method == "bayes":
            return TPESampler(seed=seed, constant_liar=True)  # trials run at the same time
        return RandomSampler(seed=seed)

    def _pruner(self) -> BasePruner:
        early = self.sweep.early_terminate
        if early is None:
            return NopPruner()
        return SuccessiveHalvingPruner(min_resource=early.min_iter, reduction_factor=early.eta)


def study_exists(folder: Path) -> bool:
    """Whether a sweep was begun in the folder."""
    return any((folder / name).exists() for name in (_SQLITE, _JOURNAL))


def _storage(folder: Path, *, across_hosts: bool) -> BaseStorage:
    journal = folder / _JOURNAL
    if journal.exists() or (across_hosts and not (folder / _SQLITE).exists()):
        # The lock that also works on NFS; a holder that died is given up after its grace period.
        return JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
    path = folder.resolve() / _SQLITE

    def connect() -> sqlite3.Connection:
        """By its path: in an address ?, # and % would mean something."""
        return sqlite3.connect(path, timeout=60, check_same_thread=False)

    return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool})


def _name(path: ParameterPath) -> str:
    return "/".join(path)


def _follow(values: dict[str, Any], path: ParameterPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _short(value: Any) -> str:
    """The end of a dotted name, the stem of a file, the digits of a number; safe in a folder's name."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = Path(text).stem if text.endswith((".yaml", ".yml")) else text
    if isinstance(value, str):
        text = text.rsplit(".", 1)[-1]
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.")[:24] or "x"
