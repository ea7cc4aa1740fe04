"""One fit at a time in a run folder: a file lock that vanishes with its holder."""

import fcntl
from pathlib import Path
from typing import IO

_NAME = ".fit.lock"


class FolderLock:
    """A run folder that this process writes into, until `release` or its death.

    Args:
        folder: of the run; made if it isn't there, for its owner alone.

    Raises:
        ValueError: another fit writes into it.
    """

    def __init__(self, folder: Path) -> None:
        make_run_folder(folder)
        if not (folder / "config.yaml").exists():  # a logger may have made it for this fit, for all to read
            folder.chmod(0o700)
        self._file: IO[str] | None = (folder / _NAME).open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"run.dir={folder} is in use by another fit that is running: wait until it ends, or choose "
                "another folder"
            ) from None
        except OSError:  # a file system without locks
            self.release()

    def release(self) -> None:
        """Let another fit in; safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


def make_run_folder(folder: Path) -> None:
    """Make a run folder that nobody but its owner reads, as it may hold figures of private rows."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
