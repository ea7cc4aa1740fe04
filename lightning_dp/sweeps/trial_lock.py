"""Who looks after a trial, by two file locks in its folder that vanish with their holders.

The *agent's* lock is held by the process that started the trial, the *process's* lock by the trial itself,
which inherits it. So when an agent is killed its trial is seen to be alive or dead by whoever comes next,
and is never started twice.
"""

import fcntl
import os
from pathlib import Path
from typing import IO, final

_AGENT, _PROCESS = ".agent.lock", ".process.lock"


@final
class TrialLock:
    """This process looks after the trial of a folder until `release`, or until it dies."""

    def __init__(self, folder: Path, agent: IO[str]) -> None:
        """Use `take`."""
        self.folder = folder
        self._agent = agent
        self._process: IO[str] | None = None

    @classmethod
    def take(cls, folder: Path) -> "TrialLock | None":
        """The claim, or None where another process has it."""
        folder.mkdir(parents=True, exist_ok=True)
        agent = _lock(folder / _AGENT)
        return None if agent is None else cls(folder, agent)

    def is_running(self) -> bool:
        """Whether the trial's process is alive, no matter who started it."""
        held = _lock(self.folder / _PROCESS)
        if held is None:
            return True
        held.close()
        return False

    def handle_for_process(self) -> int:
        """A file descriptor that the trial's process has to inherit; see `handed_over`."""
        self._process = _lock(self.folder / _PROCESS)
        assert self._process is not None, "the trial's process is alive already"
        os.set_inheritable(self._process.fileno(), True)
        return self._process.fileno()

    def handed_over(self) -> None:
        """The process has started: from now on it alone holds its lock."""
        assert self._process is not None
        self._process.close()
        self._process = None

    def release(self) -> None:
        """Let somebody else look after the trial."""
        self._agent.close()


def _lock(path: Path) -> IO[str] | None:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
