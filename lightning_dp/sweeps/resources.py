"""Threads and GPUs of trials that run side by side."""

import os
import subprocess
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Resources:
    """Divides a machine among workers.

    Attributes:
        workers: ≥ 1, trials at a time.
        threads: OMP_NUM_THREADS of each.
        gpus: names for CUDA_VISIBLE_DEVICES, in order; none on a machine without.
    """

    workers: int
    threads: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls, *, workers: int) -> "Resources":
        """Cores are divided unless OMP_NUM_THREADS is set; GPUs are those that this process may see."""
        if workers < 1:
            raise ValueError(f"--workers is {workers}; it must be at least 1")
        given = os.environ.get("OMP_NUM_THREADS")
        threads = int(given) if given else max(1, len(os.sched_getaffinity(0)) // workers)
        return cls(workers=workers, threads=threads, gpus=_visible_gpus())

    def environment(self, worker: int) -> dict[str, str]:
        """Variables for the trials of one worker: an equal share of the GPUs, or one that is shared."""
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            share = len(self.gpus) // self.workers
            own = (
                self.gpus[worker * share : (worker + 1) * share]
                if share
                else (self.gpus[worker % len(self.gpus)],)
            )
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return variables


def _visible_gpus() -> tuple[str, ...]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(part.strip() for part in given.split(",") if part.strip() not in ("", "-1"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ()
    return tuple(str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU "))
