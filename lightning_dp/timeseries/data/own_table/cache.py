"""Converted tables on this machine, by what is in the files and how they are read.

A converted table is private data: its folder belongs to the user alone (0700), is never part of a run folder,
and can be deleted at any time between runs.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_FORMAT = 2  # of what is written; a change makes older folders unused
_CHUNK = 1 << 22


def fingerprint(paths: Sequence[Path], *, identity: Mapping[str, object]) -> str:
    """32 hex digits of the files' contents and of how they are read; names and places of files don't count.

    Args:
        paths: files in the order in which they are read.
        identity: JSON of everything that decides what is made of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_FORMAT, identity], sort_keys=True).encode())
    for path in paths:
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def converted(root: Path, *, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of a converted table, made where it is missing.

    Args:
        root: of all converted tables.
        key: of this one.
        make: fills an empty folder. What it raises is raised, and nothing stays behind.

    Raises:
        ValueError: the folder can't be written.
    """
    folder = root / key
    if folder.exists():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = Path(tempfile.mkdtemp(dir=root, prefix=f".{key}."))  # 0700, whatever the umask
    except OSError as error:
        raise ValueError(f"cache_dir={root} can't be written ({error}); name a folder that can.") from None
    try:
        make(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same content
                raise
    except OSError as error:
        raise ValueError(
            f"the table could not be converted into cache_dir={root} ({error}); name a folder with more room."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
