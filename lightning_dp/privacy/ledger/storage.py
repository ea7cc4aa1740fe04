"""The ledger's file: found, made, opened, locked, appended to and committed together with its anchor.

Scope: where rows live and when they are on disk. What a row means is `replay.py`, who may append one
`ledger.py` and `lease.py`.
"""

import contextlib
import json
import logging
import os
import secrets
import sqlite3
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_dp.privacy.ledger.anchor import anchor_path, append_anchor, read_anchor, sync_folder
from lightning_dp.privacy.ledger.connections import (
    Connection,
    error_name,
    inherited_paths,
    open_connections,
    plain_errors,
)
from lightning_dp.privacy.ledger.errors import BudgetExceeded, LedgerCorrupt, LedgerError, LedgerMissing
from lightning_dp.privacy.ledger.replay import Replay
from lightning_dp.privacy.ledger.rows import (
    APPLICATION_ID,
    COLUMNS,
    FORMAT,
    SCHEMA,
    Entry,
    canonical,
    hash_row,
)

ENVIRONMENT_VARIABLE = "LIGHTNING_DP_LEDGER"

_logger = logging.getLogger(__name__)


def default_ledger_path() -> Path:
    """Where the ledger is when nobody says: `LIGHTNING_DP_LEDGER`, else the user's data folder."""
    if path := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(path).expanduser()
    if data := os.environ.get("XDG_DATA_HOME"):
        base = Path(data)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path.home() / ".local" / "share"
    return base / "lightning-dp" / "ledger.sqlite"


class LedgerFile:
    """The file of one ledger and its anchor. Holds no connection, so it may be pickled and forked.

    Every method raises `LedgerError` in one sentence where the file is missing, damaged, locked, full,
    not writable or put back to an older state.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, lock_timeout: float) -> None:
        """Name the file; see `Ledger`."""
        chosen = default_ledger_path() if path is None else Path(path).expanduser()
        self.path = (chosen / "ledger.sqlite" if chosen.is_dir() else chosen).resolve()
        self.lock_timeout = lock_timeout

    def read(self) -> tuple[Replay, list[Entry]]:
        """Everything the file says, checked, and its rows."""
        replay = Replay(self.path)
        with contextlib.closing(self.connect()) as connection:
            return replay, self._fill(connection, replay)

    def load(self, connection: Connection) -> Replay:
        """Everything the file says, checked, by a connection that stays open."""
        replay = Replay(self.path)
        self._fill(connection, replay)
        return replay

    def _fill(self, connection: Connection, replay: Replay) -> list[Entry]:
        with plain_errors(self.path, self.lock_timeout):
            # The anchor first: whatever it has seen then was committed before the snapshot begins.
            anchored = self._anchored()
            connection.execute("BEGIN")
            try:
                return replay.load(connection, anchored)
            finally:
                connection.rollback()

    def _anchored(self, *, tail: int | None = None) -> dict[int, str]:
        anchored = read_anchor(self.path, tail=tail)
        if anchored is None:
            name = anchor_path(self.path).name
            raise LedgerCorrupt(
                f"The ledger {self.path} has lost its anchor {name}, without which an incomplete copy can't "
                "be told from a complete one. Put it back; or, if you know that this copy is complete, "
                f"make an empty file {name} beside it.",
                seq=1,
            )
        return anchored

    @contextlib.contextmanager
    def transaction(self, connection: Connection, replay: Replay) -> Iterator[None]:
        """Take the write lock, catch up, let the caller decide and insert, commit, anchor.

        When this returns the rows are on disk and the anchor names them. When it raises, the rows
        may be there too (too much is charged, never too little), and the caller must release nothing.
        """
        with plain_errors(self.path, self.lock_timeout):
            anchored = self._anchored(tail=4096)
            connection.execute("BEGIN IMMEDIATE")
            before = -1
            try:
                replay.advance(connection, anchored)
                before = replay.seq
                yield
                connection.execute("COMMIT")
            except BaseException as error:
                refused = isinstance(error, BudgetExceeded | ValueError) and replay.seq == before
                replay.stale = replay.stale or not refused
                with contextlib.suppress(sqlite3.Error):
                    connection.rollback()
                raise
            if replay.seq > before:
                append_anchor(self.path, replay.seq, replay.hash)
            self._check_identity(connection)

    def insert(
        self,
        connection: Connection,
        replay: Replay,
        key: tuple[str, str],
        *,
        kind: str,
        detail: dict[str, Any],
        run: str = "",
        lease: str = "",
    ) -> Entry:
        """Append one row to the open transaction and to `replay`."""
        row: dict[str, Any] = {
            "seq": replay.seq + 1,
            "prev_hash": replay.hash,
            "dataset": key[0],
            "unit": key[1],
            "run": run,
            "lease": lease,
            "kind": kind,
            "detail": canonical(detail),
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        row["hash"] = hash_row(row)
        connection.execute(
            f"INSERT INTO entry ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})",
            [row[name] for name in COLUMNS],
        )
        entry = Entry(**{**row, "detail": json.loads(row["detail"])})
        replay.apply(entry)
        return entry

    def _check_identity(self, connection: Connection) -> None:
        # A file that was deleted or replaced goes on taking commits that nobody will ever read again.
        stat = os.stat(self.path)
        if (stat.st_dev, stat.st_ino) != connection.identity:
            raise LedgerCorrupt(
                f"The ledger {self.path} was replaced while this process was using it. Nothing more may be "
                "released. Put back the ledger that was there and start again.",
                seq=1,
            )

    def connect(self, *, create: bool = False) -> Connection:
        """A connection whose commits are on disk when they return; makes the ledger if `create`."""
        if str(self.path) in inherited_paths:
            raise LedgerError(
                f"The ledger {self.path} was open in the process that this one was forked from, and SQLite's "
                "locks do not survive that. Start workers with 'spawn', or open the ledger after the fork."
            )
        with plain_errors(self.path, self.lock_timeout):
            self._make_file(create=create)
            stat = os.stat(self.path)
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=rw",
                uri=True,
                timeout=self.lock_timeout,
                isolation_level=None,
                check_same_thread=False,
                factory=Connection,
            )
            connection.path = str(self.path)
            connection.identity = (stat.st_dev, stat.st_ino)
            open_connections.add(connection)
            try:
                # Damaged text must reach the hash check, which names the row, and not fail in decoding.
                connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
                self._configure(connection)
                self._check_format(connection, create=create)
                self._check_identity(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _make_file(self, *, create: bool) -> None:
        anchored = read_anchor(self.path)  # before the look at the file, which another process may make
        if self.path.exists():
            return
        if anchored:
            raise LedgerCorrupt(
                f"The ledger {self.path} is gone, but its anchor {anchor_path(self.path).name} remembers it."
                " Put the ledger back. To give up what it recorded, and with it every claim about the data "
                "sets in it, remove the anchor.",
                seq=1,
            )
        if not create:
            raise LedgerMissing(
                f"There is no ledger at {self.path} yet; the first private run makes one. If there should "
                f"be one, say where: --ledger or {ENVIRONMENT_VARIABLE}."
            )
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            sync_folder(self.path.parent)

    def _configure(self, connection: Connection) -> None:
        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                # Two processes that make the same ledger: SQLite does not wait here by itself.
                if not error_name(error).startswith("BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise LedgerError(
                f"The ledger {self.path} can't keep a write-ahead log (SQLite says {mode!r}); keep it on a "
                "local disk."
            )
        # FULL: a commit returns only when the log is on disk. fullfsync: the same on macOS.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA fullfsync=ON")

    def _check_format(self, connection: Connection, *, create: bool) -> None:
        if self._is_ledger(connection):
            return
        if not create:
            raise LedgerMissing(f"The ledger {self.path} is empty; the first private run begins it.")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._is_ledger(connection):  # another process was faster
                connection.rollback()
                return
            for statement in SCHEMA.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            # The anchor is there before the first commit: later its absence always means a loss.
            os.close(os.open(anchor_path(self.path), os.O_CREAT | os.O_WRONLY, 0o600))
            sync_folder(self.path.parent)
            replay = Replay(self.path)
            # The nonce makes two ledgers with the same history differ.
            detail = {"format": FORMAT, "nonce": secrets.token_hex(16)}
            self.insert(connection, replay, ("", ""), kind="genesis", detail=detail)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise
        append_anchor(self.path, replay.seq, replay.hash)
        _logger.warning("A new privacy ledger begins at %s", self.path)

    def _is_ledger(self, connection: Connection) -> bool:
        # The anchor first, and one snapshot: another process may begin the ledger between two looks at it.
        anchored = read_anchor(self.path)
        with _snapshot(connection):
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application_id, version) == (APPLICATION_ID, FORMAT):
            return True
        if (application_id, version, objects) == (0, 0, 0):
            if anchored:
                raise LedgerCorrupt(
                    f"The ledger {self.path} is empty, but its anchor remembers entries: it was cut off. "
                    "Put back the newest complete copy.",
                    seq=1,
                )
            return False
        raise LedgerCorrupt(
            f"{self.path} is a database, but no lightning-dp ledger of format {FORMAT}: take another path, "
            "a newer lightning-dp, or put back the newest complete copy.",
            seq=1,
        )


@contextlib.contextmanager
def _snapshot(connection: Connection) -> Iterator[None]:
    """What is read inside is of one moment."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()
