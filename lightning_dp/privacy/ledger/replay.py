"""Reading the ledger: every row checked, then folded into accounts, charges and leases."""

import json
import platform
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from lightning_dp.privacy.accounting import Event, GaussianEvent, count_releases, event_from_dict, releases
from lightning_dp.privacy.ledger.anchor import anchor_path
from lightning_dp.privacy.ledger.connections import error_name
from lightning_dp.privacy.ledger.errors import LedgerCorrupt, LedgerError
from lightning_dp.privacy.ledger.processes import process_start
from lightning_dp.privacy.ledger.rows import CHARGES, COLUMNS, SCHEMA, ZERO_HASH, Entry, hash_fits

_REMOTE_HOLD = timedelta(hours=24)


@dataclass
class Account:
    """The facts of one data set and unit and all that was charged to it.

    `beside` has the finer units that the owner lets be charged although this limit doesn't see them, with
    the reasons; a new limit forgets them.
    """

    relation: str
    delta: float
    limit: float | None = None
    beside: dict[str, str] = field(default_factory=dict)
    counts: Counter[Event] = field(default_factory=Counter)
    runs: dict[str, None] = field(default_factory=dict)


@dataclass
class Charge:
    """One reservation, release or audit, at the steps that count."""

    key: tuple[str, str]
    run: str
    lease: str
    kind: str
    event: Event


@dataclass
class LeaseRecord:
    """What the rows say about one lease."""

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
            self.ended = process_start(self.process["pid"]) != self.process.get("started")
        return not self.ended


class Replay:
    """Everything the ledger says, folded from its rows in order; each row is checked on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.seq = 0
        self.hash = ZERO_HASH
        self.stale = False
        self.hashes: dict[int, str] = {}
        self.accounts: dict[tuple[str, str], Account] = {}
        self.charges: dict[int, Charge] = {}
        self.leases: dict[str, LeaseRecord] = {}

    @property
    def reference(self) -> tuple[int, str]:
        """(seq, hash) of the last row."""
        return self.seq, self.hash

    def load(self, connection: sqlite3.Connection, anchored: Mapping[int, str]) -> list[Entry]:
        """Read and check everything from the first row; return the rows."""
        self.reset()
        schema = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        )
        if schema != SCHEMA:
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
        query = f"SELECT {', '.join(COLUMNS)} FROM entry WHERE seq > ? ORDER BY seq"
        rows = connection.execute(query, (self.seq,))
        while True:
            try:
                values = next(rows, None)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and error_name(error) not in ("", "CORRUPT"):
                    raise
                self.fail(self.seq + 1, f"SQLite can't read it ({error})")
            if values is None:
                return entries
            row = dict(zip(COLUMNS, values, strict=True))
            if row["seq"] != self.seq + 1:
                self.fail(self.seq + 1, f"it is missing; the next row says {row['seq']}")
            if row["prev_hash"] != self.hash or not hash_fits(row):
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
                    f"the anchor {anchor_path(self.path).name} has seen entry {seq} ({digest[:12]}…) "
                    f"and the ledger, which ends at {self.seq}, does not hold it: its -wal file was lost "
                    "or an older copy was put back",
                )

    def apply(self, entry: Entry) -> None:
        """Fold one row, whose hash was checked, into the accounts."""
        key, detail = (entry.dataset, entry.unit), entry.detail
        if entry.lease in self.leases:
            self.leases[entry.lease].last_seen = entry.time
        if entry.kind == "register":
            self.accounts[key] = Account(relation=detail["relation"], delta=detail["delta"])
        elif entry.kind == "limit":
            self.accounts[key].limit = detail["epsilon"]
            self.accounts[key].beside.clear()
        elif entry.kind == "open":
            self.accounts[key].runs[entry.run] = None
            plan = count_releases([event_from_dict(event) for event in detail["plan"]])
            self.leases[entry.lease] = LeaseRecord(key, entry.run, detail["process"], plan, entry.time)
        elif entry.kind in CHARGES:
            event = event_from_dict(detail["event"])
            single, number = releases(event)
            self.charges[entry.seq] = Charge(key, entry.run, entry.lease, entry.kind, event)
            self.accounts[key].counts[single] += number
            undrawn = self.leases[entry.lease].undrawn
            undrawn[single] = max(0, undrawn[single] - number)
        elif entry.kind == "close":
            self.leases[entry.lease].ended = True
            for seq, taken in detail["steps_taken"].items():
                self._close_charge(int(seq), taken, entry.lease)
        elif entry.kind == "override" and "finer_unit" in detail:
            self.accounts[key].beside[detail["finer_unit"]] = detail["reason"]
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

    def account(self, dataset: str, unit: str) -> Account:
        """The account, or LedgerError that names those there are."""
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
        """Raise LedgerCorrupt; what was folded so far is not used again."""
        self.stale = True
        raise LedgerCorrupt(
            f"The ledger {self.path} can't be trusted from entry {seq} on: {why}. Nothing was charged and "
            "no private row may be read. Put back the newest complete copy (the file, its -wal and its "
            "-anchor together) and run: lightning-dp ledger verify",
            seq=seq,
        )
