"""Whether the process that took a lease is still there."""

import contextlib
import os
import sys
from pathlib import Path


def process_start(pid: int) -> str | None:
    """What tells a running process from a later one with the same id; None if there is none."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
    if sys.platform in ("linux", "win32"):  # Windows: os.kill would end the process
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except OSError:
        return None
    return "running"
