"""Starts agents as jobs of their own, by submitit: on Slurm, or as processes of this machine."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from lightning_dp.extras import needed_by


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job gets.

    Attributes:
        minutes: time limit, ≥ 1.
        cpus: cores, ≥ 1.
        gpus: ≥ 0.
        partition: Slurm's, or None for its default.
    """

    minutes: int
    cpus: int = 1
    gpus: int = 0
    partition: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("minutes", self.minutes, 1),
            ("cpus", self.cpus, 1),
            ("gpus", self.gpus, 0),
        ):
            if value < least:
                raise ValueError(f"--{name} is {value}; it must be at least {least}")


@final
class Agent:
    """What a job runs: a command in a folder. A job whose time is up starts again and goes on.

    Args:
        command: of the agent.
        folder: to run it in, as paths in sweep files are relative.
    """

    def __init__(self, command: Sequence[str], *, folder: Path) -> None:
        self._command = list(command)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        # A trial that saw the job's task count would take itself for one of several ranks.
        environment = {name: value for name, value in os.environ.items() if name != "SLURM_NTASKS"}
        self._process = subprocess.Popen(self._command, cwd=self._folder, env=environment)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """submitit's signal before the time is up: trials close their accounts, the job is queued again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        return DelayedSubmission(Agent(self._command, folder=self._folder))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}


def launch(
    command: Sequence[str],
    *,
    cluster: Literal["slurm", "local"],
    agents: int,
    folder: Path,
    resources: Resources,
) -> list[str]:
    """Submit the jobs and return at once with a line about each.

    Args:
        command: of one agent; they share the work by what it shares.
        cluster: where.
        agents: ≥ 1 jobs.
        folder: of their logs; on Slurm one that all machines see.
        resources: of each.

    Raises:
        ValueError: no agent, or no Slurm here.
    """
    if agents < 1:
        raise ValueError(f"--agents is {agents}; it must be at least 1")
    with needed_by("launching a sweep"):
        import submitit
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise ValueError(f"--cluster={cluster} can't be used from here: {error}") from error
    options: dict[str, Any] = {
        "name": "lightning-dp-sweep",
        "timeout_min": resources.minutes,
        "gpus_per_node": resources.gpus,  # submitit hides all others from a local job
    }
    if cluster == "slurm":
        options |= {
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": resources.cpus,
        }
        if resources.partition:
            options["slurm_partition"] = resources.partition
    executor.update_parameters(**options)
    jobs = [executor.submit(Agent(command, folder=Path.cwd())) for _ in range(agents)]
    return [f"job {job.job_id}, log {job.paths.stdout}" for job in jobs]
