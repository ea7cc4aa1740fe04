"""The privacy ledger: what was charged to each data set, written down before any private row is read.

One append-only SQLite file per data owner, kept outside run folders. Every release is a *reservation*
that is on disk before the release may happen, so a process that dies at any moment has been charged
for at least what it did. Rows form a hash chain; checkpoints carry `(seq, hash)` of the ledger, and
a resume is refused where the ledger lacks that entry. Entries hold mechanisms (noise multiplier,
sampling rate, steps), never an ε: ε is computed from all entries when somebody asks.

Guarantee: as long as a caller releases nothing that `Lease.reserve` did not return for, what is
charged to a data set covers what was released, whatever is killed, resumed, forked, rolled back to
an older checkpoint or run at the same time. A lost write-ahead log, an older copy put back or a
damaged row is found before the next reservation, with the help of the *anchor*: a small text file
beside the ledger that repeats `(seq, hash)` of what was committed.

Out of scope: putting back ledger, anchor and checkpoints together, or deleting all of them; somebody
who rewrites the file and its hashes on purpose (compare `(seq, hash)` with a copy held elsewhere);
a re-encoded copy of the data under another name; network file systems, which SQLite's log does not
support; the units of one data set, whose accounts are apart and do not add up into each other.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import math
import os
import platform
import secrets
import sqlite3
import sys
import threading
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

import numpy as np
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from lightning_dp.privacy.accounting import (
    Event,
    GaussianEvent,
    LaplaceEvent,
    check_delta,
    epsilon_pld,
    event_from_dict,
    event_to_dict,
)

ENVIRONMENT_VARIABLE = "LIGHTNING_DP_LEDGER"
RELATION = "add_or_remove_one"
ChargeKind = Literal["reserve", "release", "audit"]

_logger = logging.getLogger(__name__)
_CHARGES = ("reserve", "release", "audit")
_ZERO_HASH = "0" * 64
_APPLICATION_ID = 0x4C445031  # "LDP1", so that another program's database is not taken for a ledger
_FORMAT = 1
_COLUMNS = ("seq", "prev_hash", "hash", "dataset", "unit", "run", "lease", "kind", "detail", "time")
_REMOTE_HOLD = timedelta(hours=24)

# BEFORE INSERT also stops INSERT OR REPLACE, whose hidden delete does not fire delete triggers.
_SCHEMA = {
    "entry": (
        "CREATE TABLE entry (seq INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, hash TEXT NOT NULL, "
        "dataset TEXT NOT NULL, unit TEXT NOT NULL, run TEXT NOT NULL, lease TEXT NOT NULL, "
        "kind TEXT NOT NULL, detail TEXT NOT NULL, time TEXT NOT NULL)"
    ),
    "entry_is_not_updated": (
        "CREATE TRIGGER entry_is_not_updated BEFORE UPDATE ON entry BEGIN "
        "SELECT RAISE(ABORT, 'the ledger is append-only: no update'); END"
    ),
    "entry_is_not_deleted": (
        "CREATE TRIGGER entry_is_not_deleted BEFORE DELETE ON entry BEGIN "
        "SELECT RAISE(ABORT, 'the ledger is append-only: no delete'); END"
    ),
    "entry_is_appended": (
        "CREATE TRIGGER entry_is_appended BEFORE INSERT ON entry WHEN "
        "NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM entry) OR NEW.prev_hash IS NOT coalesce("
        f"(SELECT hash FROM entry ORDER BY seq DESC LIMIT 1), '{_ZERO_HASH}') BEGIN "
        "SELECT RAISE(ABORT, 'the ledger is append-only: an entry must follow the last one'); END"
    ),
}


class LedgerError(RuntimeError):
    """The ledger can't vouch for what was asked; the sentence says why and what to do."""


class LedgerMissing(LedgerError):
    """There is no ledger at this path yet."""


class LedgerCorrupt(LedgerError):
    """The ledger is damaged, incomplete or was put back to an older state.

    Attributes:
        seq: the first entry that can't be trusted.
    """

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class BudgetExceeded(LedgerError):
    """The charge would pass the data set's limit; nothing was charged.

    Attributes:
        limit_epsilon: the limit.
        spent_epsilon: the filter's ε of what is charged already.
        needed_epsilon: the filter's ε with the refused charge and the plans of running leases.
        steps_left: how many releases of the refused kind would still fit.
    """

    def __init__(
        self,
        message: str,
        *,
        limit_epsilon: float,
        spent_epsilon: float,
        needed_epsilon: float,
        steps_left: int,
    ) -> None:
        super().__init__(message)
        self.limit_epsilon = limit_epsilon
        self.spent_epsilon = spent_epsilon
        self.needed_epsilon = needed_epsilon
        self.steps_left = steps_left


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the ledger.

    Attributes:
        seq: ≥ 1, without gaps.
        prev_hash: the previous row's hash.
        hash: SHA-256 over all other fields, hexadecimal.
        dataset, unit, run, lease: what the row belongs to; empty where that does not apply.
        kind: genesis, register, limit, open, reserve, release, audit, override or close.
        detail: what the row says, JSON-ready.
        time: UTC, for readers only; nothing is decided by it except how long a plan is held for a
            process on another host.
    """

    seq: int
    prev_hash: str
    hash: str
    dataset: str
    unit: str
    run: str
    lease: str
    kind: str
    detail: dict[str, Any]
    time: str

    @property
    def reference(self) -> tuple[int, str]:
        """(seq, hash), what a checkpoint or an exported artefact carries."""
        return self.seq, self.hash


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The account of one data set and unit.

    Attributes:
        dataset, unit, relation, delta: the registered facts.
        limit_epsilon: no charge may take the filter above it; None is no limit.
        filter_epsilon: ε of all charges by the filter, valid also where later runs were chosen after
            looking at earlier ones; None without a limit.
        held_epsilon: the same with the plans that running leases have not drawn yet.
        runs: ids of the runs that opened a lease, in order.
    """

    dataset: str
    unit: str
    relation: str
    delta: float
    limit_epsilon: float | None
    filter_epsilon: float | None
    held_epsilon: float | None
    runs: tuple[str, ...]


# --- the filter -----------------------------------------------------------------------------------


def _filter_orders() -> tuple[float, ...]:
    # Whole numbers where possible: dp-accounting's fractional orders are slow and may not converge.
    steps = (1 + 0.25 * 2 ** (k / 3) for k in range(40))
    return tuple(sorted({round(a, 2) if a < 8 else float(round(a)) for a in steps}))


_ORDERS = np.array(_filter_orders())


@lru_cache(maxsize=256)
def _rdp_curve(single: Event) -> np.ndarray:
    """RDP of one release at each of `_ORDERS`; inf where dp-accounting gives no bound."""
    if isinstance(single, LaplaceEvent):
        event: dp_event.DpEvent = dp_event.LaplaceDpEvent(single.noise_multiplier)
    else:
        event = dp_event.GaussianDpEvent(single.noise_multiplier)
        if single.sampling_rate < 1:
            event = dp_event.PoissonSampledDpEvent(single.sampling_rate, event)
    accountant = RdpAccountant(_ORDERS.tolist())
    absl_logger, was_disabled = logging.getLogger("absl"), logging.getLogger("absl").disabled
    absl_logger.disabled = True  # an order without a bound is left out, which is safe: no need to warn
    try:
        accountant.compose(event)
    finally:
        absl_logger.disabled = was_disabled
    curve = np.asarray(accountant.rdp, dtype=np.float64)
    return np.where(np.isnan(curve), np.inf, curve)


def _releases(event: Event) -> tuple[Event, int]:
    """The mechanism of one release and how many of it the event holds."""
    if isinstance(event, GaussianEvent):
        return replace(event, steps=1), event.steps
    return event, 1


def _count(events: Sequence[Event]) -> Counter[Event]:
    counts: Counter[Event] = Counter()
    for single, number in map(_releases, events):
        counts[single] += number
    return counts


def filter_epsilon(events: Sequence[Event], delta: float, *, limit_epsilon: float) -> float:
    """The smallest ε for which the ledger's filter admits all `events`; 0 for none.

    Valid when each mechanism is chosen after seeing the earlier outputs, and when runs overlap in
    time: a Rényi filter of one fixed order is (Feldman & Zrnic 2021, arXiv 2008.11193; overlapping
    runs: Haney et al. 2023, arXiv 2309.05901). Taking the best order afterwards is not covered by
    that, so δ is shared over the orders, Σ_α δ_α = δ: the transcripts on which order α is within its
    budget at the end exceed ε by at most δ_α, and every admitted transcript has such an order. The
    shares favour the order that suits Gaussian noise at `limit_epsilon`; the price against
    `epsilon_rdp` is a few per cent. RDP becomes ε by Canonne, Kamath & Steinke 2020, arXiv 2004.00010,
    Prop. 12.

    Args:
        events: charges, in any order.
        delta: in (0, 1).
        limit_epsilon: ≥ 0, the limit that the filter enforces; fixes the shares.
    """
    check_delta(delta)
    return _filter_epsilon(_count(events), delta, limit_epsilon)


def _filter_epsilon(counts: Mapping[Event, int], delta: float, limit_epsilon: float) -> float:
    if not any(counts.values()):
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        rdp = sum(number * _rdp_curve(single) for single, number in counts.items() if number)
        # The order at which Gaussian noise, whose RDP is a multiple of the order, may use the most.
        gaussian = 1 + np.geomspace(0.25, 2048, num=500)
        best = gaussian[np.argmax((limit_epsilon - _rdp_to_epsilon(delta, gaussian)) / gaussian)]
        distance = np.abs(np.log2((_ORDERS - 1) / (best - 1)))
        shares = 2.0 ** (-4 * distance)
        epsilons = rdp + _rdp_to_epsilon(delta * shares / shares.sum(), _ORDERS)
    return max(0.0, float(np.nanmin(epsilons)))


def _rdp_to_epsilon(delta: float | np.ndarray, orders: np.ndarray) -> np.ndarray:
    """What each order adds to its RDP to make an ε at δ."""
    return np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)


# --- rows -----------------------------------------------------------------------------------------


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _hash_row(row: Mapping[str, Any]) -> str:
    fields = [row[name] for name in _COLUMNS if name != "hash"]
    return hashlib.sha256(f"lightning-dp ledger {_FORMAT}\n{_canonical(fields)}".encode()).hexdigest()


def _hash_fits(row: Mapping[str, Any]) -> bool:
    try:
        return bool(row["hash"] == _hash_row(row))
    except (TypeError, ValueError):  # damage can turn a text into bytes or a NaN, which JSON lacks
        return False


@dataclass
class _Account:
    relation: str
    delta: float
    limit: float | None = None
    counts: Counter[Event] = field(default_factory=Counter)
    runs: dict[str, None] = field(default_factory=dict)


@dataclass
class _Charge:
    key: tuple[str, str]
    run: str
    lease: str
    event: Event


@dataclass
class _LeaseRecord:
    key: tuple[str, str]
    run: str
    process: dict[str, Any]
    undrawn: Counter[Event]
    last_seen: str
    ended: bool = False

    def is_running(self) -> bool:
        """Whether the process that took the lease may still draw on its plan.

        Only decides whose plan is held; a wrong answer can refuse a run or let two start that can't
        both end, never let a charge pass the limit.
        """
        if self.ended:
            return False
        if self.process.get("host") != platform.node():
            self.ended = datetime.now(UTC) - datetime.fromisoformat(self.last_seen) > _REMOTE_HOLD
        else:
            self.ended = _process_start(self.process["pid"]) != self.process.get("started")
        return not self.ended


def _process_start(pid: int) -> str | None:
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


class _Replay:
    """Everything the ledger says, folded from its rows in order; each row is checked on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        self.seq = 0
        self.hash = _ZERO_HASH
        self.stale = False
        self.hashes: dict[int, str] = {}
        self.accounts: dict[tuple[str, str], _Account] = {}
        self.charges: dict[int, _Charge] = {}
        self.leases: dict[str, _LeaseRecord] = {}

    @property
    def reference(self) -> tuple[int, str]:
        return self.seq, self.hash

    def load(self, connection: sqlite3.Connection, anchored: Mapping[int, str]) -> list[Entry]:
        """Read and check everything from the first row; return the rows."""
        self.reset()
        schema = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        )
        if schema != _SCHEMA:
            self.fail(1, "its table or the triggers that keep it append-only were changed")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        entries = self._follow(connection)
        if verdict != "ok":
            self.fail(self.seq + 1, f"SQLite finds the file damaged ({verdict})")
        if self.seq == 0:
            self.fail(1, "its first entry is gone")
        self._compare(anchored)
        return entries

    def advance(self, connection: sqlite3.Connection, anchored: Mapping[int, str]) -> None:
        """Read and check what other processes appended since the last look."""
        if self.stale:
            self.load(connection, anchored)
            return
        row = connection.execute("SELECT hash FROM entry WHERE seq = ?", (self.seq,)).fetchone()
        if row is None or row[0] != self.hash:
            self.fail(self.seq, "the entry that was last when this process looked is not there any more")
        self._follow(connection)
        self._compare(anchored)

    def _follow(self, connection: sqlite3.Connection) -> list[Entry]:
        entries: list[Entry] = []
        query = f"SELECT {', '.join(_COLUMNS)} FROM entry WHERE seq > ? ORDER BY seq"
        rows = connection.execute(query, (self.seq,))
        while True:
            try:
                values = next(rows, None)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and _error_name(error) not in ("", "CORRUPT"):
                    raise
                self.fail(self.seq + 1, f"SQLite can't read it ({error})")
            if values is None:
                return entries
            row = dict(zip(_COLUMNS, values, strict=True))
            if row["seq"] != self.seq + 1:
                self.fail(self.seq + 1, f"it is missing; the next row says {row['seq']}")
            if row["prev_hash"] != self.hash or not _hash_fits(row):
                self.fail(self.seq + 1, "its hash does not fit its content and the entry before it")
            try:
                entry = Entry(**{**row, "detail": json.loads(row["detail"])})
                self.apply(entry)
            except (KeyError, TypeError, ValueError) as error:
                self.fail(
                    self.seq + 1, f"it can't be accounted for ({error!r}); was it written by a newer version?"
                )
            entries.append(entry)

    def _compare(self, anchored: Mapping[int, str]) -> None:
        for seq, digest in anchored.items():
            if self.hashes.get(seq) != digest:
                self.fail(
                    min(seq, self.seq + 1),
                    f"the anchor {_anchor_path(self.path).name} has seen entry {seq} ({digest[:12]}…) "
                    f"and the ledger, which ends at {self.seq}, does not hold it: its -wal file was lost "
                    "or an older copy was put back",
                )

    def apply(self, entry: Entry) -> None:
        """Fold one row, whose hash was checked, into the accounts."""
        key, detail = (entry.dataset, entry.unit), entry.detail
        if entry.lease in self.leases:
            self.leases[entry.lease].last_seen = entry.time
        if entry.kind == "register":
            self.accounts[key] = _Account(relation=detail["relation"], delta=detail["delta"])
        elif entry.kind == "limit":
            self.accounts[key].limit = detail["epsilon"]
        elif entry.kind == "open":
            self.accounts[key].runs[entry.run] = None
            plan = _count([event_from_dict(event) for event in detail["plan"]])
            self.leases[entry.lease] = _LeaseRecord(key, entry.run, detail["process"], plan, entry.time)
        elif entry.kind in _CHARGES:
            event = event_from_dict(detail["event"])
            single, number = _releases(event)
            self.charges[entry.seq] = _Charge(key, entry.run, entry.lease, event)
            self.accounts[key].counts[single] += number
            undrawn = self.leases[entry.lease].undrawn
            undrawn[single] = max(0, undrawn[single] - number)
        elif entry.kind == "close":
            self.leases[entry.lease].ended = True
            for seq, taken in detail["steps_taken"].items():
                self._close_charge(int(seq), taken, entry.lease)
        elif entry.kind not in ("genesis", "override"):
            raise ValueError(f"unknown kind {entry.kind!r}")
        self.seq, self.hash = entry.reference
        self.hashes[entry.seq] = entry.hash

    def _close_charge(self, seq: int, taken: int, lease: str) -> None:
        charge = self.charges[seq]
        if (
            charge.lease != lease
            or not isinstance(charge.event, GaussianEvent)
            or not 0 <= taken <= charge.event.steps
        ):
            raise ValueError(f"reservation {seq} can't be closed at {taken} steps")
        self.accounts[charge.key].counts[replace(charge.event, steps=1)] -= charge.event.steps - taken
        charge.event = replace(charge.event, steps=taken)

    def account(self, dataset: str, unit: str) -> _Account:
        try:
            return self.accounts[dataset, unit]
        except KeyError:
            units = sorted(u for d, u in self.accounts if d == dataset)
            known = (
                f"its units are {', '.join(units)}"
                if units
                else f"{len({d for d, _ in self.accounts})} data sets are; see: lightning-dp ledger list"
            )
            raise LedgerError(
                f"Data set {dataset!r} with unit {unit!r} is not registered in {self.path}: {known}."
            ) from None

    def fail(self, seq: int, why: str) -> NoReturn:
        self.stale = True
        raise LedgerCorrupt(
            f"The ledger {self.path} can't be trusted from entry {seq} on: {why}. Nothing was charged and "
            "no private row may be read. Put back the newest complete copy (the file, its -wal and its "
            "-anchor together) and run: lightning-dp ledger verify",
            seq=seq,
        )


# --- the anchor: what was committed, repeated outside the database --------------------------------


def _anchor_path(path: Path) -> Path:
    return path.with_name(path.name + "-anchor")


def _anchor_line(seq: int, digest: str) -> bytes:
    # A line starts and ends with a newline: one that a full disk cut short can't spoil the next.
    text = f"{seq} {digest}"
    return f"\n{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _read_anchor(path: Path, *, tail: int | None = None) -> dict[int, str] | None:
    """The entries that the anchor has seen, of its last `tail` bytes or all; None if there is no file."""
    try:
        with _anchor_path(path).open("rb") as file:
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


def _append_anchor(path: Path, seq: int, digest: str) -> None:
    # Not synced: the log was, and an anchor that a power cut left behind is still a true one. Syncing it
    # would double the time of a reservation to guard against a power cut and a lost log together.
    line = _anchor_line(seq, digest)
    # Without O_CREAT: an anchor that disappeared under a running process is an error, not a new file.
    handle = os.open(_anchor_path(path), os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(handle, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(_anchor_path(path)))
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- connections ----------------------------------------------------------------------------------


class _Connection(sqlite3.Connection):
    """Adds weak references, so that a fork can find what is open."""

    path: str
    identity: tuple[int, int]

    def close(self) -> None:
        _open_connections.discard(self)
        super().close()


_open_connections: "weakref.WeakSet[_Connection]" = weakref.WeakSet()
_inherited_paths: set[str] = set()


def _abandon_after_fork() -> None:
    # SQLite's locks and its record of them do not survive a fork: the child must neither use nor even
    # close an inherited connection, and a new one to the same file would rely on locks it does not have.
    for connection in list(_open_connections):
        _inherited_paths.add(connection.path)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # never closed, not at exit either
    _open_connections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)


def _error_name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")


@contextlib.contextmanager
def _plain_errors(path: Path, lock_timeout: float) -> Iterator[None]:
    """Turn what SQLite and the operating system say into one sentence."""
    refused = "Nothing was reserved, so no private row may be read."
    try:
        yield
    except sqlite3.Error as error:
        name = _error_name(error)
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


def _name(field_name: str, value: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 200 or not value.isprintable():
        raise ValueError(f"{field_name} is {value!r}; it must be 1 to 200 printable characters.")
    return value


def _limit(value: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise ValueError(f"limit_epsilon is {value!r}; it must be a number of at least 0 (0: nothing more).")
    return float(value)


class Ledger:
    """The ledger at one path. Holds no connection between calls, so it may be pickled and forked.

    A relation other than add-or-remove-one is refused: the accountant knows no other, and a
    replacement costs twice the sensitivity.

    Errors: every method raises `LedgerError` (or `LedgerCorrupt`) in one sentence where the file is
    missing, damaged, locked, full, not writable or put back to an older state, and `ValueError` for
    arguments that can't be right.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, lock_timeout: float = 30.0) -> None:
        """Name the ledger; the file is made by the first `register`.

        Args:
            path: the file; None takes `default_ledger_path`.
            lock_timeout: seconds to wait for another process's transaction.
        """
        chosen = default_ledger_path() if path is None else Path(path).expanduser()
        self.path = (chosen / "ledger.sqlite" if chosen.is_dir() else chosen).resolve()
        self.lock_timeout = lock_timeout

    # writing

    def register(
        self,
        dataset: str,
        *,
        unit: str,
        delta: float,
        relation: str = RELATION,
        limit_epsilon: float | None = None,
    ) -> None:
        """Open the account of a data set and unit; again with the same facts, do nothing.

        Args:
            dataset: fingerprint or name, 1 to 200 printable characters.
            unit: what one guarantee protects (`record`, `window`, `user`, …).
            delta: δ in (0, 1) of every ε of this account.
            relation: `add_or_remove_one`.
            limit_epsilon: ≥ 0; None leaves the limit as it is. An account without a limit gets this one.

        Raises:
            ValueError: a fact differs from the registered one; a limit is changed by `set_limit` only.
        """
        key = (_name("dataset", dataset), _name("unit", unit))
        check_delta(delta)
        if relation != RELATION:
            raise ValueError(
                f"relation is {relation!r}; only {RELATION!r} is accounted for. For replace-one, treat a "
                "replacement as one removal and one addition (group of two)."
            )
        wanted = None if limit_epsilon is None else _limit(limit_epsilon)
        with self._appending(create=True) as (replay, append):
            account = replay.accounts.get(key)
            if account is None:
                append(key, kind="register", detail={"relation": relation, "delta": float(delta)})
            else:
                for name, old, new in (
                    ("relation", account.relation, relation),
                    ("delta", account.delta, delta),
                ):
                    if old != new:
                        raise ValueError(
                            f"{name} of data set {dataset!r} ({unit}) is {new!r}, but the ledger has {old!r}:"
                            " an account keeps its facts, so that its runs can be added up. Use those."
                        )
            known = replay.accounts[key].limit
            if wanted is not None and known is None:
                append(key, kind="limit", detail={"epsilon": wanted, "reason": "registered"})
            elif wanted is not None and wanted != known:
                raise ValueError(
                    f"limit_epsilon of data set {dataset!r} ({unit}) is {wanted:g}, but the ledger has "
                    f"{known:g}. A run can't change it; its owner can: "
                    f"lightning-dp ledger set-limit {dataset} --unit {unit} --epsilon {wanted:g}"
                )

    def set_limit(self, dataset: str, *, unit: str, limit_epsilon: float | None, reason: str = "") -> Entry:
        """Append a new limit; None lifts it. Below what is spent it stops all further charges.

        The filter's guarantee is for limits that are not chosen by looking at earlier outputs.
        """
        wanted = None if limit_epsilon is None else _limit(limit_epsilon)
        with self._appending() as (replay, append):
            replay.account(dataset, unit)
            return append((dataset, unit), kind="limit", detail={"epsilon": wanted, "reason": reason})

    def open_run(
        self,
        dataset: str,
        *,
        unit: str,
        run: str,
        parent: tuple[int, str] | None = None,
        plan: Sequence[Event] = (),
    ) -> "Lease":
        """Take a lease: what one process start needs to reserve. Checks the whole ledger first.

        Args:
            dataset, unit: a registered account.
            run: id of the run; a resumed run keeps it.
            parent: (seq, hash) from the checkpoint that is resumed.
            plan: everything that this process means to charge. It is held against the limit while the
                process lives, so of two runs that can't both end one is refused here, before any
                private row is read. A plan is not a charge and not part of any ε.

        Raises:
            LedgerError: the ledger does not hold `parent`, so charges since then would be lost.
            BudgetExceeded: `plan` does not fit.
        """
        _name("run", run)
        plan = [event for event in plan if _releases(event)[1]]
        connection = self._connect()
        try:
            replay = self._load(connection)
            with self._transaction(connection, replay):
                replay.account(dataset, unit)
                if parent is not None and replay.hashes.get(parent[0]) != parent[1]:
                    raise LedgerError(
                        f"The checkpoint was written when the ledger had entry {parent[0]} "
                        f"({parent[1][:12]}…); {self.path} ends at {replay.seq} and does not hold it, so "
                        "what was charged since is not in it. Use the ledger that the run was started "
                        f"with ({ENVIRONMENT_VARIABLE} or --ledger), or put back its newest copy."
                    )
                lease = secrets.token_hex(8)
                _check_budget(replay, (dataset, unit), plan, run=run, lease=lease)
                pid = os.getpid()
                process = {"host": platform.node(), "pid": pid, "started": _process_start(pid)}
                detail = {
                    "parent": None if parent is None else list(parent),
                    "plan": [event_to_dict(event) for event in plan],
                    "process": process,
                }
                entry = _insert(
                    connection, replay, (dataset, unit), kind="open", run=run, lease=lease, detail=detail
                )
            return Lease(self, connection, replay, entry)
        except BaseException:
            connection.close()
            raise

    # reading

    def head(self) -> tuple[int, str]:
        """(seq, hash) of the last entry."""
        return self._read()[0].reference

    def contains(self, seq: int, digest: str) -> bool:
        """Whether the ledger holds the entry that a checkpoint or artefact carries."""
        return self._read()[0].hashes.get(seq) == digest

    def verify(self) -> tuple[int, str]:
        """Check every row, the append-only triggers, SQLite's own structure and the anchor.

        Returns:
            (seq, hash) of the last entry.

        Raises:
            LedgerCorrupt: names the first entry that can't be trusted.
        """
        return self._read()[0].reference

    def entries(self, dataset: str | None = None, *, unit: str | None = None) -> list[Entry]:
        """All rows, or those of one data set (and unit), in order."""
        return [
            entry
            for entry in self._read()[1]
            if dataset in (None, entry.dataset) and unit in (None, entry.unit)
        ]

    def events(self, dataset: str, *, unit: str, run: str | None = None) -> list[Event]:
        """Everything charged to an account (by one run), closed reservations at the steps taken."""
        return self._events(self._read()[0], dataset, unit, run)

    def events_by_run(self, dataset: str, *, unit: str) -> dict[str, list[Event]]:
        """The same for every run that opened a lease, in order; empty where it charged nothing."""
        replay = self._read()[0]
        runs: dict[str, list[Event]] = {run: [] for run in replay.account(dataset, unit).runs}
        for charge in replay.charges.values():
            if charge.key == (dataset, unit):
                runs[charge.run].append(charge.event)
        return runs

    def epsilon(self, dataset: str, *, unit: str, delta: float | None = None) -> float:
        """ε of everything charged to an account (PLD), at its δ or another.

        Never below what was released. Exact for plans made before looking at earlier outputs; where a
        run was chosen because of an earlier one's result, `budget` has the figure that covers that.
        """
        return self._epsilon(dataset, unit, None, delta)

    def epsilon_of_run(self, run: str, *, dataset: str, unit: str, delta: float | None = None) -> float:
        """ε of everything that one run charged to an account, over all its restarts (PLD)."""
        return self._epsilon(dataset, unit, run, delta)

    def budget(self, dataset: str, *, unit: str) -> Budget:
        """Facts, limit and the filter's figures of one account."""
        replay = self._read()[0]
        account = replay.account(dataset, unit)
        spent = held = None
        if account.limit is not None:
            undrawn = _undrawn_plans(replay, (dataset, unit), run=None, lease=None)
            spent = _filter_epsilon(account.counts, account.delta, account.limit)
            held = _filter_epsilon(account.counts + undrawn, account.delta, account.limit)
        return Budget(
            dataset=dataset,
            unit=unit,
            relation=account.relation,
            delta=account.delta,
            limit_epsilon=account.limit,
            filter_epsilon=spent,
            held_epsilon=held,
            runs=tuple(account.runs),
        )

    def accounts(self) -> list[tuple[str, str]]:
        """(data set, unit) of every account, in the order of registration."""
        return list(self._read()[0].accounts)

    # private

    def _epsilon(self, dataset: str, unit: str, run: str | None, delta: float | None) -> float:
        replay = self._read()[0]
        events = self._events(replay, dataset, unit, run)
        return epsilon_pld(events, replay.account(dataset, unit).delta if delta is None else delta)

    def _events(self, replay: _Replay, dataset: str, unit: str, run: str | None) -> list[Event]:
        account = replay.account(dataset, unit)
        if run is not None and run not in account.runs:
            raise LedgerError(f"Run {run!r} has no entry for data set {dataset!r} ({unit}) in {self.path}.")
        charges = (c for c in replay.charges.values() if c.key == (dataset, unit))
        return [c.event for c in charges if run in (None, c.run)]

    def _read(self) -> tuple[_Replay, list[Entry]]:
        replay = _Replay(self.path)
        with contextlib.closing(self._connect()) as connection:
            return replay, self._fill(connection, replay)

    def _load(self, connection: _Connection) -> _Replay:
        replay = _Replay(self.path)
        self._fill(connection, replay)
        return replay

    def _fill(self, connection: _Connection, replay: _Replay) -> list[Entry]:
        with _plain_errors(self.path, self.lock_timeout):
            # The anchor first: whatever it has seen then was committed before the snapshot begins.
            anchored = self._anchored()
            connection.execute("BEGIN")
            try:
                return replay.load(connection, anchored)
            finally:
                connection.rollback()

    def _anchored(self, *, tail: int | None = None) -> dict[int, str]:
        anchored = _read_anchor(self.path, tail=tail)
        if anchored is None:
            name = _anchor_path(self.path).name
            raise LedgerCorrupt(
                f"The ledger {self.path} has lost its anchor {name}, without which an incomplete copy can't "
                "be told from a complete one. Put it back; or, if you know that this copy is complete, "
                f"make an empty file {name} beside it.",
                seq=1,
            )
        return anchored

    @contextlib.contextmanager
    def _appending(self, *, create: bool = False) -> Iterator[tuple[_Replay, Callable[..., Entry]]]:
        """A transaction of its own, for entries that belong to no lease."""
        with contextlib.closing(self._connect(create=create)) as connection:
            replay = self._load(connection)
            with self._transaction(connection, replay):

                def append(key: tuple[str, str], *, kind: str, detail: dict[str, Any]) -> Entry:
                    return _insert(connection, replay, key, kind=kind, detail=detail)

                yield replay, append

    @contextlib.contextmanager
    def _transaction(self, connection: _Connection, replay: _Replay) -> Iterator[None]:
        """Take the write lock, catch up, let the caller decide and insert, commit, anchor.

        When this returns the rows are on disk and the anchor names them. When it raises, the rows
        may be there too (too much is charged, never too little), and the caller must release nothing.
        """
        with _plain_errors(self.path, self.lock_timeout):
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
                _append_anchor(self.path, replay.seq, replay.hash)
            self._check_identity(connection)

    def _check_identity(self, connection: _Connection) -> None:
        # A file that was deleted or replaced goes on taking commits that nobody will ever read again.
        stat = os.stat(self.path)
        if (stat.st_dev, stat.st_ino) != connection.identity:
            raise LedgerCorrupt(
                f"The ledger {self.path} was replaced while this process was using it. Nothing more may be "
                "released. Put back the ledger that was there and start again.",
                seq=1,
            )

    def _connect(self, *, create: bool = False) -> _Connection:
        if str(self.path) in _inherited_paths:
            raise LedgerError(
                f"The ledger {self.path} was open in the process that this one was forked from, and SQLite's "
                "locks do not survive that. Start workers with 'spawn', or open the ledger after the fork."
            )
        with _plain_errors(self.path, self.lock_timeout):
            self._make_file(create=create)
            stat = os.stat(self.path)
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=rw",
                uri=True,
                timeout=self.lock_timeout,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
            connection.path = str(self.path)
            connection.identity = (stat.st_dev, stat.st_ino)
            _open_connections.add(connection)
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
        if self.path.exists():
            return
        if _read_anchor(self.path):
            raise LedgerCorrupt(
                f"The ledger {self.path} is gone, but its anchor {_anchor_path(self.path).name} remembers it."
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
            _sync_folder(self.path.parent)

    def _configure(self, connection: _Connection) -> None:
        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                # Two processes that make the same ledger: SQLite does not wait here by itself.
                if not _error_name(error).startswith("BUSY") or time.monotonic() > deadline:
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

    def _check_format(self, connection: _Connection, *, create: bool) -> None:
        if self._is_ledger(connection):
            return
        if not create:
            raise LedgerMissing(f"The ledger {self.path} is empty; the first private run begins it.")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._is_ledger(connection):  # another process was faster
                connection.rollback()
                return
            for statement in _SCHEMA.values():
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={_FORMAT}")
            # The anchor is there before the first commit: later its absence always means a loss.
            os.close(os.open(_anchor_path(self.path), os.O_CREAT | os.O_WRONLY, 0o600))
            _sync_folder(self.path.parent)
            replay = _Replay(self.path)
            # The nonce makes two ledgers with the same history differ.
            detail = {"format": _FORMAT, "nonce": secrets.token_hex(16)}
            _insert(connection, replay, ("", ""), kind="genesis", detail=detail)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise
        _append_anchor(self.path, replay.seq, replay.hash)
        _logger.warning("A new privacy ledger begins at %s", self.path)

    def _is_ledger(self, connection: _Connection) -> bool:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application_id, version) == (_APPLICATION_ID, _FORMAT):
            return True
        if (application_id, version, objects) == (0, 0, 0):
            if _read_anchor(self.path):
                raise LedgerCorrupt(
                    f"The ledger {self.path} is empty, but its anchor remembers entries: it was cut off. "
                    "Put back the newest complete copy.",
                    seq=1,
                )
            return False
        raise LedgerCorrupt(
            f"{self.path} is a database, but no lightning-dp ledger of format {_FORMAT}: take another path, "
            "a newer lightning-dp, or put back the newest complete copy.",
            seq=1,
        )


def _insert(
    connection: _Connection,
    replay: _Replay,
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
        "detail": _canonical(detail),
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    row["hash"] = _hash_row(row)
    connection.execute(
        f"INSERT INTO entry ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})",
        [row[name] for name in _COLUMNS],
    )
    entry = Entry(**{**row, "detail": json.loads(row["detail"])})
    replay.apply(entry)
    return entry


def _undrawn_plans(
    replay: _Replay, key: tuple[str, str], *, run: str | None, lease: str | None
) -> Counter[Event]:
    """What running leases of other runs have planned and not yet reserved."""
    total: Counter[Event] = Counter()
    for name, record in replay.leases.items():
        if record.key == key and name != lease and record.run != run and record.is_running():
            total += record.undrawn
    return total


def _check_budget(
    replay: _Replay, key: tuple[str, str], events: Sequence[Event], *, run: str, lease: str
) -> None:
    """Raise BudgetExceeded where `events` would pass the limit together with all else."""
    account = replay.accounts[key]
    limit = account.limit
    if limit is None or not events:
        return
    held = _undrawn_plans(replay, key, run=run, lease=lease)

    def epsilon(extra: Counter[Event]) -> float:
        return _filter_epsilon(account.counts + held + extra, account.delta, limit)

    needed = epsilon(_count(events))
    if needed <= limit:
        return
    single, number = _releases(events[-1])
    low, high = 0, number  # the largest number that fits is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if epsilon(Counter({single: middle})) <= limit:
            low = middle
        else:
            high = middle
    spent = _filter_epsilon(account.counts, account.delta, limit)
    others = f"; with the plans of running leases {epsilon(Counter()):.4g}" if held else ""
    raise BudgetExceeded(
        f"The budget of data set {key[0]!r} ({key[1]}) does not cover this: ε would be {needed:.4g} at "
        f"δ={account.delta:g} by the Rényi filter, the limit is {limit:g}, spent is {spent:.4g} by "
        f"{len(account.runs)} run(s){others}. {low} of the {number} step(s) would fit. Nothing was charged "
        "and no private row may be read. Take fewer steps or more noise, or let the data's owner raise the "
        f"limit: lightning-dp ledger set-limit {key[0]} --unit {key[1]} --epsilon E",
        limit_epsilon=limit,
        spent_epsilon=spent,
        needed_epsilon=needed,
        steps_left=low,
    )


class Lease:
    """The right of one process start to charge one account; made by `Ledger.open_run`.

    Safe to use from several threads. Belongs to the process that opened it: after a fork every method
    raises. With several ranks only rank 0 holds one and tells the others. As a context manager it is
    closed without credit at the end, which is right after an exception.
    """

    def __init__(self, ledger: Ledger, connection: _Connection, replay: _Replay, entry: Entry) -> None:
        self.ledger = ledger
        self.dataset = entry.dataset
        self.unit = entry.unit
        self.run = entry.run
        self.id = entry.lease
        self._head = entry.reference
        self._connection = connection
        self._replay = replay
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def head(self) -> tuple[int, str]:
        """(seq, hash) of this lease's last entry: what a checkpoint carries as `parent`."""
        return self._head

    def reserve(self, event: Event, *, kind: ChargeKind = "reserve", note: str = "") -> Entry:
        """Charge `event`. Only after this returned may the private rows it pays for be read.

        Args:
            event: a mechanism; a Gaussian one has steps ≥ 1.
            kind: `reserve` for training steps, `release` for a one-off statistic, `audit`.
            note: what was released, for readers.

        Returns:
            The entry, which is on disk.

        Raises:
            BudgetExceeded: the limit would be passed; nothing was charged.
            LedgerError: the entry may or may not be there; release nothing.
        """
        if kind not in _CHARGES:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(_CHARGES)}.")
        if _releases(event)[1] < 1:
            raise ValueError("event.steps is 0; reserve at least one step.")

        def check() -> None:
            _check_budget(self._replay, self._key, [event], run=self.run, lease=self.id)

        return self._append(kind, {"event": event_to_dict(event), "note": note}, check)

    def override(self, reason: str) -> Entry:
        """Write down that a check was overridden and why; costs nothing, lifts no limit."""
        if not reason.strip():
            raise ValueError("reason is empty; say why the check may be overridden.")
        return self._append("override", {"reason": reason})

    def close(self, *, steps_taken: Mapping[int, int] | None = None) -> Entry:
        """End the lease cleanly and give back what it reserved and did not use.

        Args:
            steps_taken: seq of a Gaussian reservation of this lease → steps really taken, between 0
                and those reserved. Reservations left out stay charged in full, and so does
                everything where this is never called: after a crash nothing is given back.
        """
        taken = dict(steps_taken or {})

        def check() -> None:
            for seq, steps in taken.items():
                charge = self._replay.charges.get(seq)
                if charge is None or charge.lease != self.id or not isinstance(charge.event, GaussianEvent):
                    raise ValueError(f"steps_taken names entry {seq}, no Gaussian reservation of this lease.")
                if not isinstance(steps, int) or not 0 <= steps <= charge.event.steps:
                    raise ValueError(
                        f"steps_taken of entry {seq} is {steps!r}; {charge.event.steps} were reserved."
                    )

        entry = self._append("close", {"steps_taken": {str(seq): n for seq, n in taken.items()}}, check)
        self._closed = True
        self._connection.close()
        return entry

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self.close()

    def __reduce__(self) -> NoReturn:
        raise LedgerError(
            "A lease belongs to one process and can't be pickled; open one in the other process."
        )

    @property
    def _key(self) -> tuple[str, str]:
        return self.dataset, self.unit

    def _append(self, kind: str, detail: dict[str, Any], check: Callable[[], None] = lambda: None) -> Entry:
        if os.getpid() != self._pid:  # before the lock, which another thread may have held at the fork
            raise LedgerError(
                f"This lease was opened by process {self._pid} and used in its fork {os.getpid()}: each "
                "process must open its own, or let rank 0 reserve."
            )
        with self._lock:
            if self._closed:
                raise LedgerError("This lease is closed; open a new one with open_run.")
            with self.ledger._transaction(self._connection, self._replay):
                check()
                entry = _insert(
                    self._connection,
                    self._replay,
                    self._key,
                    kind=kind,
                    run=self.run,
                    lease=self.id,
                    detail=detail,
                )
            self._head = entry.reference
            return entry
