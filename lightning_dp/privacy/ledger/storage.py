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
from collections.abc import Callable, Collection, Iterator
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
from lightning_dp.privacy.ledger.disk import MOUNTS, check_disk
from lightning_dp.privacy.ledger.errors import BudgetExceeded, LedgerCorrupt, LedgerError, LedgerMissing
from lightning_dp.privacy.ledger.keys import SigningKey, head_message, key_at_hand, signing_key
from lightning_dp.privacy.ledger.replay import Charge, Replay, has_signatures
from lightning_dp.privacy.ledger.rows import (
    APPLICATION_ID,
    COLUMNS,
    FORMAT,
    SCHEMA,
    SIGNATURES,
    SIGNED,
    Entry,
    canonical,
    hash_row,
)
from lightning_dp.privacy.ledger.scan import scan_charges
from lightning_dp.privacy.ledger.snapshot import EVERY, Snapshot, read_snapshot, write_snapshot

ENVIRONMENT_VARIABLE = "LIGHTNING_DP_LEDGER"

_TAIL = 4096  # bytes of the anchor that are read where the rest was compared before

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

    def __init__(
        self, path: str | os.PathLike[str] | None, *, lock_timeout: float, mounts: Path = MOUNTS
    ) -> None:
        """Name the file, see `Ledger`; `mounts` is the table of what is mounted, see `disk.py`."""
        chosen = default_ledger_path() if path is None else Path(path).expanduser()
        self.path = (chosen / "ledger.sqlite" if chosen.is_dir() else chosen).resolve()
        self.lock_timeout = lock_timeout
        self._mounts = mounts

    def read(self) -> Replay:
        """Everything that the file says, checked as far as no snapshot vouches for it."""
        with contextlib.closing(self.connect()) as connection:
            return self.load(connection)

    def load(self, connection: Connection) -> Replay:
        """The same, by a connection that stays open."""
        with self._moment(connection) as replay:
            pass
        self.keep(replay, key=key_at_hand(self.path))
        return replay

    def read_all(
        self,
        each: Callable[[Entry], None] | None = None,
        *,
        then: Callable[[Connection, Replay], None] | None = None,
        replay: Replay | None = None,
    ) -> Replay:
        """Everything that the file says, every row read and checked.

        Args:
            each: is shown every entry.
            then: looks at more of the same moment.
            replay: what is filled; None makes one.
        """
        replay = Replay(self.path) if replay is None else replay
        with (
            contextlib.closing(self.connect()) as connection,
            plain_errors(self.path, self.lock_timeout),
        ):
            # The anchor first: whatever it has seen then was committed before the moment that is read.
            anchored = self._anchored()
            with _snapshot(connection):
                replay.load(connection, anchored, each=each)
                if then is not None:
                    then(connection, replay)
        return replay

    def holds(self, references: Collection[tuple[object, object]]) -> list[bool]:
        """Which of these (seq, hash) are entries of the ledger."""
        with contextlib.closing(self.connect()) as connection, self._moment(connection) as replay:
            return [replay.holds(connection, seq, digest) for seq, digest in references]

    def proof(self, seq: int) -> dict[str, Any] | None:
        """The chain's end at an entry with its signature; None where it has none."""
        with contextlib.closing(self.connect()) as connection, plain_errors(self.path, self.lock_timeout):
            if not has_signatures(connection):
                return None
            row = connection.execute(
                "SELECT entry.hash, key, signature FROM signature JOIN entry USING (seq) WHERE seq = ?",
                (seq,),
            ).fetchone()
        if row is None:
            return None
        return {"seq": seq, "hash": row[0], "public_key": row[1], "signature": row[2]}

    def charges(
        self, *, runs: Collection[str] | None = None, key: Callable[[Replay], tuple[str, str]] | None = None
    ) -> tuple[Replay, list[Charge]]:
        """Charges at the steps that count, in order, of some runs and of an account, or of all."""
        with contextlib.closing(self.connect()) as connection, self._moment(connection) as replay:
            chosen = None if key is None else key(replay)
            return replay, scan_charges(connection, replay, runs=runs, key=chosen)

    @contextlib.contextmanager
    def _moment(self, connection: Connection) -> Iterator[Replay]:
        """What is read inside is of the moment that the replay says."""
        replay = Replay(self.path)
        with plain_errors(self.path, self.lock_timeout):
            snapshot = read_snapshot(self.path, key=connection.key or key_at_hand(self.path))
            anchored = self._anchored(tail=None if snapshot is None else _TAIL)
            with _snapshot(connection):
                self._fold(connection, replay, anchored, snapshot)
                yield replay

    def _fold(
        self, connection: Connection, replay: Replay, anchored: dict[int, str], snapshot: Snapshot | None
    ) -> None:
        """Fold the rows, from the newest snapshot on where there is one.

        Raises:
            LedgerCorrupt: also where the ledger lacks what the snapshot ends at.
        """
        if snapshot is not None:
            snapshot.put_into(replay)
            if replay.holds(connection, snapshot.seq, snapshot.hash):
                replay.load_from(connection, anchored)
                return
        replay.load(connection, anchored)
        if snapshot is not None:
            replay.fail(
                min(snapshot.seq, replay.seq + 1),
                f"this key signed a snapshot that ends at entry {snapshot.seq} ({snapshot.hash[:12]}…), and "
                f"the ledger, which ends at {replay.seq}, does not hold it: it was rewritten, cut, or put "
                "back to an older state",
            )

    def keep(self, replay: Replay, *, key: SigningKey | None) -> None:
        """Write a snapshot where reading up to here again would take a while."""
        if key is not None and replay.seq - replay.base >= EVERY and not replay.stale:
            write_snapshot(self.path, replay, key=key)

    def _anchored(self, *, tail: int | None = None) -> dict[int, str]:
        anchored = read_anchor(self.path, tail=tail)
        if anchored is None:
            name = anchor_path(self.path).name
            raise LedgerCorrupt(
                f"The ledger {self.path} has lost its anchor {name}, without which an incomplete copy can't "
                "be told from a complete one. Put back the newest complete copy of both; where there is "
                "none, compare this one with what runs carry: lightning-dp ledger verify --against RUNS",
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
            anchored = self._anchored(tail=_TAIL)
            connection.key = connection.key or signing_key(self.path, create=True)
            connection.execute("BEGIN IMMEDIATE")
            before, proof = -1, connection.proof
            try:
                if replay.stale:
                    self._fold(connection, replay, anchored, read_snapshot(self.path, key=connection.key))
                else:
                    replay.advance(connection, anchored)
                before = replay.seq
                yield
                if replay.seq > before:
                    proof = self._sign(connection, replay)
                connection.execute("COMMIT")
            except BaseException as error:
                refused = isinstance(error, BudgetExceeded | ValueError) and replay.seq == before
                replay.stale = replay.stale or not refused
                with contextlib.suppress(sqlite3.Error):
                    connection.rollback()
                raise
            if replay.seq > before:
                append_anchor(self.path, replay.seq, replay.hash)
            connection.proof = proof
            self._check_identity(connection)

    def _sign(self, connection: Connection, replay: Replay) -> dict[str, Any]:
        """Sign the end of the chain in the open transaction; a key that is new to the chain enters it first.

        Returns:
            What a checkpoint or a report carries of it.
        """
        key = connection.key
        assert key is not None
        if not has_signatures(connection):
            for statement in SIGNATURES.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={SIGNED}")
        if key.public not in replay.keys:
            self.insert(connection, replay, ("", ""), kind="key", detail={"public_key": key.public})
        signature = key.sign(head_message(replay.seq, replay.hash))
        connection.execute("INSERT INTO signature VALUES (?, ?, ?)", (replay.seq, key.public, signature))
        (began,) = connection.execute("SELECT hash FROM entry WHERE seq = 1").fetchone()
        return {
            "ledger_id": began,
            "seq": replay.seq,
            "hash": replay.hash,
            "public_key": key.public,
            "signature": signature,
        }

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
        check_disk(self.path, mounts=self._mounts)
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
        anchored = read_anchor(
            self.path, tail=_TAIL
        )  # before the look at the file, which another process may make
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
                f"There is no ledger at {self.path} yet; the first private run makes one, or 'lightning-dp "
                "ledger register DATASET --unit UNIT --limit E', which sets a limit before it. If there "
                f"should be one, say where: --ledger or {ENVIRONMENT_VARIABLE}."
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
        key = connection.key = signing_key(self.path, create=True)
        assert key is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._is_ledger(connection):  # another process was faster
                connection.rollback()
                return
            for statement in (SCHEMA | SIGNATURES).values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SIGNED}")
            # The anchor is there before the first commit: later its absence always means a loss.
            os.close(os.open(anchor_path(self.path), os.O_CREAT | os.O_WRONLY, 0o600))
            sync_folder(self.path.parent)
            replay = Replay(self.path)
            # The nonce makes two ledgers with the same history differ.
            detail = {"format": FORMAT, "nonce": secrets.token_hex(16), "public_key": key.public}
            self.insert(connection, replay, ("", ""), kind="genesis", detail=detail)
            self._sign(connection, replay)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise
        append_anchor(self.path, replay.seq, replay.hash)
        _logger.warning("A new privacy ledger begins at %s", self.path)

    def _is_ledger(self, connection: Connection) -> bool:
        # The anchor first, and one snapshot: another process may begin the ledger between two looks at it.
        anchored = read_anchor(self.path, tail=_TAIL)
        with _snapshot(connection):
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application_id == APPLICATION_ID and version in (FORMAT, SIGNED):
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
