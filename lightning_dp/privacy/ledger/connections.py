"""SQLite connections that no fork can use, and its errors as plain sentences."""

import contextlib
import ctypes
import os
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_dp.privacy.ledger.errors import LedgerCorrupt, LedgerError
from lightning_dp.privacy.ledger.keys import SigningKey


class Connection(sqlite3.Connection):
    """Adds weak references, so that a fork can find what is open.

    `key` signs what is appended; `proof` is the chain's end after the last transaction, with its signature.
    """

    path: str
    identity: tuple[int, int]
    key: SigningKey | None = None
    proof: dict[str, Any] | None = None

    def close(self) -> None:
        open_connections.discard(self)
        super().close()


open_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()
inherited_paths: set[str] = set()
"""Ledgers that were open in the process from which this one was forked."""


def _abandon_after_fork() -> None:
    # SQLite's locks and its record of them do not survive a fork: the child must neither use nor even
    # close an inherited connection, and a new one to the same file would rely on locks it does not have.
    for connection in list(open_connections):
        inherited_paths.add(connection.path)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # never closed, not at exit either
    open_connections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)


def error_name(error: sqlite3.Error) -> str:
    """SQLite's name of an error without its prefix; empty where it has none."""
    return getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")


@contextlib.contextmanager
def plain_errors(path: Path, lock_timeout: float) -> Iterator[None]:
    """Turn what SQLite and the operating system say into one sentence."""
    refused = "Nothing was reserved, so no private row may be read."
    try:
        yield
    except sqlite3.Error as error:
        name = error_name(error)
        if name.startswith(("BUSY", "LOCKED")):
            why = f"another process has held its lock for more than {lock_timeout:g} s; wait for it or end it"
        elif name == "FULL":
            why = "there is no space left on its disk; free some and start again"
        elif name.startswith("READONLY"):
            why = "it can't be written; check the owner and the permissions of the file and its folder"
        elif name.startswith("CANTOPEN"):
            why = "it can't be opened; check that its folder exists and may be written"
        elif name.startswith("IOERR"):
            why = f"its disk failed to read, write or sync ({error}); check the disk"
        elif name.startswith(("CORRUPT", "NOTADB")):
            raise LedgerCorrupt(
                f"The ledger {path} is damaged or no ledger at all ({error}). {refused} "
                "Put back the newest complete copy.",
                seq=1,
            ) from error
        else:
            why = f"SQLite refuses ({error})"
        raise LedgerError(f"The ledger {path}: {why}. {refused}") from error
    except UnicodeDecodeError as error:  # SQLite's own message quotes a damaged schema
        raise LedgerCorrupt(
            f"The ledger {path} is damaged. {refused} Put back the newest complete copy.", seq=1
        ) from error
    except OSError as error:
        raise LedgerError(f"The ledger {path}: {error.strerror} ({error.filename}). {refused}") from error
