"""The anchor: what was committed, repeated in a small text file beside the database.

It tells a complete ledger from one whose log was lost or that was put back to an older state.
"""

import errno
import os
import zlib
from pathlib import Path


def anchor_path(path: Path) -> Path:
    """The anchor of the ledger at `path`."""
    return path.with_name(path.name + "-anchor")


def _anchor_line(seq: int, digest: str) -> bytes:
    # A line starts and ends with a newline: one that a full disk cut short can't spoil the next.
    text = f"{seq} {digest}"
    return f"\n{text} {zlib.crc32(text.encode()):08x}\n".encode()


def read_anchor(path: Path, *, tail: int | None = None) -> dict[int, str] | None:
    """The entries that the anchor has seen, of its last `tail` bytes or all; None if there is no file."""
    try:
        with anchor_path(path).open("rb") as file:
            if tail is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - tail))
            content = file.read()
    except FileNotFoundError:
        return None
    seen = {}
    for line in content.split(b"\n"):
        seq, _, rest = line.partition(b" ")
        digest = rest[:64].decode("ascii", "replace")
        if seq.isdigit() and b"\n" + line + b"\n" == _anchor_line(int(seq), digest):
            seen[int(seq)] = digest
    return seen


def append_anchor(path: Path, seq: int, digest: str) -> None:
    """Note that entry `seq` was committed."""
    # Not synced: the log was, and an anchor that a power cut left behind is still a true one. Syncing it
    # would double the time of a reservation to guard against a power cut and a lost log together.
    line = _anchor_line(seq, digest)
    # Without O_CREAT: an anchor that disappeared under a running process is an error, not a new file.
    handle = os.open(anchor_path(path), os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(handle, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(anchor_path(path)))
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Put the names of the files in `folder` on disk."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
