"""Runs a sweep's trials on this machine, several at a time, with no server.

Trials are processes with the file's own command, so they do what they would under a W&B agent. Whatever is
killed, the next `SweepRunner` on the folder goes on: ended trials stay ended, a trial that is still alive is
waited for, one that died goes on from its checkpoint.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any, final

import optuna
from optuna.trial import TrialState

from lightning_dp.sweeps.command import build_command
from lightning_dp.sweeps.parameters import assemble
from lightning_dp.sweeps.progress import SweepProgress
from lightning_dp.sweeps.resources import Resources
from lightning_dp.sweeps.study import Outcome, SweepStudy
from lightning_dp.sweeps.trial import TrialProcess
from lightning_dp.sweeps.trial_lock import TrialLock

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 120.0
"""A stopped trial has a step, a checkpoint and the ledger to finish."""


@final
class SweepRunner:
    """One agent.

    Args:
        study: of the sweep.
        placement: threads and GPUs of each worker; as many trials run at a time as it has workers.
        view: told what happens.

    Attributes:
        stopped: why no further trial was started, in a sentence; empty where nothing was in the way.
    """

    def __init__(self, study: SweepStudy, *, resources: Resources, progress: SweepProgress) -> None:
        self._study = study
        self._resources = resources
        self._progress = progress
        self.stopped = ""
        self._running: dict[int, tuple[optuna.trial.Trial, TrialProcess]] = {}  # by worker

    def run(self) -> None:
        """Until no trial is left that nobody has begun, or one has ended without what it is judged by.

        Raises:
            KeyboardInterrupt: after every running trial has closed its account in the ledger and has ended.
        """
        with _sigterm_interrupts():
            try:
                while self._fill() or self._running:
                    time.sleep(_POLL_SECONDS)
                    self._look()
            except KeyboardInterrupt:
                self._interrupt()
                raise
            finally:
                self._progress.close()

    def _fill(self) -> bool:
        """Give every idle worker a trial; False where an idle worker found none."""
        if self.stopped:
            return False
        idle = [worker for worker in range(self._resources.workers) if worker not in self._running]
        if not idle:
            return True
        left_behind = self._study.interrupted()
        for worker in idle:
            found = next(left_behind, None) or self._study.next()
            if found is None:
                return False
            self._begin(worker, *found)
        return True

    def _begin(self, worker: int, trial: optuna.trial.Trial, lock: TrialLock) -> None:
        parameters = assemble(self._study.point(trial))
        process = TrialProcess(
            number=trial.number,
            parameters=parameters,
            command=build_command(self._study.sweep, parameters),
            lock=lock,
            environment={
                "WANDB_RUN_GROUP": self._study.sweep.name,
                **self._resources.environment(worker),
            },
        )
        self._running[worker] = trial, process
        if lock.is_running():
            self._progress.event(process, "is still running, started by an agent that is gone")
        elif process.has_results():
            self._progress.event(process, "had ended when its agent was killed")
        else:
            self._start(process)

    def _start(self, process: TrialProcess) -> None:
        # Of what an earlier start has cost only the ledger knows: a killed trial's folder is behind it.
        if not process.has_begun():
            self._progress.event(process, "starts")
        elif process.has_checkpoint():
            self._progress.event(process, "goes on from its checkpoint")
        else:
            self._progress.event(process, "starts again; what it had reserved in the ledger stays charged")
        process.start()

    def _look(self) -> None:
        for worker, (trial, process) in list(self._running.items()):
            if process.has_ended():
                self._end(worker, trial, process)
            else:
                self._judge(trial, process)
                self._progress.running(worker, process)

    def _judge(self, trial: optuna.trial.Trial, process: TrialProcess) -> None:
        """Report what the trial has logged; stop it where others were better at the same point."""
        sweep = self._study.sweep
        if sweep.early_terminate is None or sweep.metric is None:
            return
        if process.stopped_at is not None:
            if time.monotonic() > process.stopped_at + _GRACE_SECONDS:
                process.stop(signal.SIGKILL)
            return
        known = self._study.trials()[trial.number].intermediate_values
        for count, value in enumerate(process.logged(sweep.metric.name), start=1):
            if count in known:
                continue
            trial.report(value, step=count)
            if trial.should_prune():
                process.stop(signal.SIGTERM)
                self._progress.event(
                    process, f"is stopped: {sweep.metric.name} = {value:.4g} is behind others"
                )
                return

    def _end(self, worker: int, trial: optuna.trial.Trial, process: TrialProcess) -> None:
        outcome = self._outcome(process)
        if outcome is None:  # it died together with the agent that had started it
            self._start(process)
            return
        trial.set_user_attr("exit_code", process.exit_code)
        self._study.tell(trial, outcome)
        process.lock.release()
        del self._running[worker]
        self._progress.ended(worker, process, outcome)

    def _outcome(self, process: TrialProcess) -> Outcome | None:
        code, metric = process.exit_code, self._study.sweep.metric
        if process.stopped_at is not None:
            return Outcome(state=TrialState.PRUNED)
        if code is None and not process.has_results():
            return None
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            said = " | ".join(process.last_errors())
            return Outcome(state=TrialState.FAIL, reason=f"it {how}" + (f": {said}" if said else ""))
        if metric is None:
            return Outcome(state=TrialState.COMPLETE)
        try:
            value = process.value(metric.name)
        except (ValueError, TypeError) as error:
            return Outcome(state=TrialState.FAIL, reason=str(error))
        if value is None or value != value:
            reason = f"it ended with {metric.name} {'missing' if value is None else 'not a number'}"
            if value is None:  # so would the others, each of them charged
                self.stopped = (
                    f"{process.folder.name} ended without {metric.name}, by which trials are judged, so no "
                    "other was started: name a metric that they log, or give the same command again for the "
                    "next one"
                )
            return Outcome(state=TrialState.FAIL, reason=reason)
        return Outcome(state=TrialState.COMPLETE, value=value)

    def _interrupt(self) -> None:
        """Have every trial close its account; they stay to be gone on with."""
        processes = [process for _, process in self._running.values()]
        ended = {process.number for process in processes if process.has_ended()}
        for process in processes:
            process.stop(signal.SIGINT)
        self._progress.note("stopping the running trials; once more Ctrl-C kills them")
        try:
            deadline = time.monotonic() + _GRACE_SECONDS
            while any(not process.has_ended() for process in processes) and time.monotonic() < deadline:
                time.sleep(0.1)
        except KeyboardInterrupt:
            pass
        for process in processes:
            process.stop(signal.SIGKILL)
        for worker, (trial, process) in list(self._running.items()):
            if process.number in ended:
                process.stopped_at = None
                self._end(worker, trial, process)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """A scheduler's SIGTERM ends the sweep as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
