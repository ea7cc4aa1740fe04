"""Reading the ledger: every row checked, then folded into accounts and leases.

Rows before a snapshot that this process could have signed itself are not read again; see `snapshot.py`.
"""

import json
import platform
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from lightning_dp.privacy.accounting import Event, GaussianEvent, count_releases, event_from_dict, releases
from lightning_dp.privacy.ledger.anchor import anchor_path
from lightning_dp.privacy.ledger.connections import error_name
from lightning_dp.privacy.ledger.errors import LedgerCorrupt, LedgerError
from lightning_dp.privacy.ledger.keys import head_message, signature_fits
from lightning_dp.privacy.ledger.processes import process_start
from lightning_dp.privacy.ledger.rows import (
    CHARGES,
    COLUMNS,
    SCHEMA,
    SIGNATURES,
    ZERO_HASH,
    Entry,
    hash_fits,
)

_REMOTE_HOLD = timedelta(hours=24)
_CONTENTS = 16  # of one data set that are remembered


@dataclass
class Account:
    """The facts of one data set and unit and all that was charged to it.

    `beside` has the finer units that the owner lets be charged although this limit doesn't see them, with
    the reasons; a new limit forgets them. `runs` are those that opened a lease, `last_charge` is a time.
    """

    relation: str
    delta: float | None
    limit: float | None = None
    beside: dict[str, str] = field(default_factory=dict)
    counts: Counter[Event] = field(default_factory=Counter)
    runs: dict[str, None] = field(default_factory=dict)
    last_charge: str = ""

    @property
    def known_delta(self) -> float:
        """δ, which an account that was opened before its first run may not have yet."""
        if self.delta is None:
            raise LedgerError("The account has no δ before its first run: name one.")
        return self.delta


@dataclass
class Charge:
    """One reservation, release or audit, at the steps that count."""

    key: tuple[str, str]
    run: str
    lease: str
    kind: str
    event: Event


@dataclass
class DataSet:
    """What is known of a data set besides its accounts.

    Attributes:
        contents: marks of what it held, the newest last; see `content.py`.
        accepts: its owner lets the next content be whatever it is.
    """

    contents: list[dict[str, Any]] = field(default_factory=list)
    accepts: bool = False


@dataclass
class LeaseRecord:
    """What the rows say about one lease that was not closed; `charges` are those of rows that were read."""

    key: tuple[str, str]
    run: str
    process: dict[str, Any]
    undrawn: Counter[Event]
    last_seen: str
    ended: bool = False
    charges: dict[int, Charge] = field(default_factory=dict)

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
    """Everything the ledger says, folded from its rows in order; each row is checked on the way.

    Attributes:
        seq, hash: of the last row that was folded.
        stale: what was folded can't be used again.
        base: the last row that was not read but taken from a snapshot; 0 for none.
        hashes: of rows after `base`.
        accounts, datasets: (data set, unit) and data set → what is known.
        aliases: other names of data sets → the name of their accounts.
        keys: public keys that sign, and from which row on.
        leases: those that are not closed.
        held: of them, by account, those that may still draw on a plan.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.seq = 0
        self.hash = ZERO_HASH
        self.stale = False
        self.base = 0
        self.hashes: dict[int, str] = {}
        self.accounts: dict[tuple[str, str], Account] = {}
        self.datasets: dict[str, DataSet] = {}
        self.aliases: dict[str, str] = {}
        self.keys: dict[str, int] = {}
        self.leases: dict[str, LeaseRecord] = {}
        self.held: dict[tuple[str, str], dict[str, LeaseRecord]] = {}

    @property
    def reference(self) -> tuple[int, str]:
        """(seq, hash) of the last row."""
        return self.seq, self.hash

    def load(
        self,
        connection: sqlite3.Connection,
        anchored: Mapping[int, str],
        *,
        each: Callable[[Entry], None] | None = None,
    ) -> None:
        """Read and check everything from the first row on.

        Args:
            connection: inside a transaction.
            anchored: what the anchor has seen.
            each: is shown every row once it is folded.
        """
        self.reset()
        self._check_schema(connection)
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        self._follow(connection, each)
        if verdict != "ok":
            self.fail(self.seq + 1, f"SQLite finds the file damaged ({verdict})")
        if self.seq == 0:
            self.fail(1, "its first entry is gone")
        self._check_end(connection)
        self._compare(anchored)

    def load_from(self, connection: sqlite3.Connection, anchored: Mapping[int, str]) -> None:
        """Read and check what follows a snapshot, whose content was put here before.

        Args:
            connection: inside a transaction.
            anchored: what the end of the anchor has seen.
        """
        self._check_schema(connection)
        self._follow(connection)
        self._check_end(connection)
        self._compare(anchored)

    def advance(self, connection: sqlite3.Connection, anchored: Mapping[int, str]) -> None:
        """Read and check what other processes appended since the last look."""
        row = connection.execute("SELECT hash FROM entry WHERE seq = ?", (self.seq,)).fetchone()
        if row is None or row[0] != self.hash:
            self.fail(self.seq, "the entry that was last when this process looked is not there any more")
        before = self.seq
        self._follow(connection)
        if self.seq > before:
            self._check_end(connection)
        self._compare(anchored)

    def holds(self, connection: sqlite3.Connection, seq: object, digest: object) -> bool:
        """Whether the ledger has this entry."""
        if not isinstance(seq, int) or isinstance(seq, bool):
            return False
        if seq > self.base:
            return digest is not None and self.hashes.get(seq) == digest
        row = _row(connection, seq)
        return row is not None and row["hash"] == digest and hash_fits(row)

    def charge(self, seq: int, *, lease: str) -> Charge | None:
        """The charge of an entry of a lease that is not closed; None where it is none."""
        record = self.leases.get(lease)
        if record is None:
            return None
        if seq > self.base or self._connection is None:
            return record.charges.get(seq)
        row = _row(self._connection, seq)
        if row is None or row["kind"] not in CHARGES or row["lease"] != lease:
            return None
        if not hash_fits(row):
            self.fail(seq, "its hash does not fit its content")
        return charge_of(row)

    def name_of(self, dataset: str) -> str:
        """The name of the accounts of a data set that may have other names."""
        return self.aliases.get(dataset, dataset)

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))
        if found not in (SCHEMA, SCHEMA | SIGNATURES):
            self.fail(1, "its tables or the triggers that keep them append-only were changed")

    def _follow(self, connection: sqlite3.Connection, each: Callable[[Entry], None] | None = None) -> None:
        self._connection = connection
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
                return
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
            if each is not None:
                each(entry)

    def _check_end(self, connection: sqlite3.Connection) -> None:
        """Whoever ended the chain has signed its end, where anybody signs."""
        if not self.keys:
            return
        if not has_signatures(connection):
            self.fail(
                min(self.keys.values()), "its entries are signed from here on, and the signatures are gone"
            )
        row = connection.execute("SELECT key, signature FROM signature WHERE seq = ?", (self.seq,)).fetchone()
        if row is None or row[0] not in self.keys:
            self.fail(self.seq, "none of the ledger's keys has signed it: it was appended by somebody else")
        if not signature_fits(head_message(self.seq, self.hash), public=row[0], signature=row[1]):
            self.fail(self.seq, "its signature does not fit")

    def _compare(self, anchored: Mapping[int, str]) -> None:
        assert self._connection is not None
        for seq, digest in anchored.items():
            if not self.holds(self._connection, seq, digest):
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
            self.datasets.setdefault(entry.dataset, DataSet())
        elif entry.kind == "delta":
            self.accounts[key].delta = detail["delta"]
        elif entry.kind == "limit":
            self.accounts[key].limit = detail["epsilon"]
            self.accounts[key].beside.clear()
        elif entry.kind == "open":
            self.accounts[key].runs[entry.run] = None
            plan = count_releases([event_from_dict(event) for event in detail["plan"]])
            self.open_lease(entry.lease, LeaseRecord(key, entry.run, detail["process"], plan, entry.time))
        elif entry.kind in CHARGES:
            event = event_from_dict(detail["event"])
            single, number = releases(event)
            record = self.leases[entry.lease]
            record.charges[entry.seq] = Charge(key, entry.run, entry.lease, entry.kind, event)
            self.accounts[key].counts[single] += number
            self.accounts[key].last_charge = entry.time
            undrawn = record.undrawn
            if undrawn[single]:
                undrawn[single] = max(0, undrawn[single] - number)
        elif entry.kind == "close":
            self._close(entry.lease, {int(seq): taken for seq, taken in detail["steps_taken"].items()})
        elif entry.kind == "override" and "finer_unit" in detail:
            self.accounts[key].beside[detail["finer_unit"]] = detail["reason"]
        elif entry.kind == "key":
            self.keys[detail["public_key"]] = entry.seq
        elif entry.kind == "alias":
            self.aliases[detail["name"]] = entry.dataset
        elif entry.kind == "accept":
            self.datasets.setdefault(entry.dataset, DataSet()).accepts = True
        elif entry.kind == "content":
            known = self.datasets.setdefault(entry.dataset, DataSet())
            known.contents = [*known.contents[1 - _CONTENTS :], detail]
            known.accepts = False
        elif entry.kind == "genesis":
            if "public_key" in detail:
                self.keys[detail["public_key"]] = entry.seq
        elif entry.kind != "override":
            raise ValueError(f"unknown kind {entry.kind!r}")
        self.seq, self.hash = entry.reference
        self.hashes[entry.seq] = entry.hash

    def open_lease(self, lease: str, record: LeaseRecord) -> None:
        """Keep a lease that is not closed."""
        self.leases[lease] = record
        if record.undrawn:
            self.held.setdefault(record.key, {})[lease] = record

    def _close(self, lease: str, steps_taken: Mapping[int, int]) -> None:
        record = self.leases[lease]
        for seq, taken in steps_taken.items():
            charge = self.charge(seq, lease=lease)
            if (
                charge is None
                or not isinstance(charge.event, GaussianEvent)
                or not 0 <= taken <= charge.event.steps
            ):
                raise ValueError(f"reservation {seq} can't be closed at {taken} steps")
            single = replace(charge.event, steps=1)
            self.accounts[charge.key].counts[single] -= charge.event.steps - taken
        del self.leases[lease]
        self.held.get(record.key, {}).pop(lease, None)

    def account(self, dataset: str, unit: str) -> Account:
        """The account, or LedgerError that names those there are."""
        try:
            return self.accounts[dataset, unit]
        except KeyError:
            units = sorted(u for d, u in self.accounts if d == dataset)
            known = (
                f"its units are {', '.join(units)}"
                if units
                else f"{len({d for d, _ in self.accounts})} data sets are; see 'lightning-dp ledger list', "
                "or open its account: lightning-dp ledger register NAME --unit UNIT --limit E"
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


def has_signatures(connection: sqlite3.Connection) -> bool:
    """Whether the file has a table of signatures; older ledgers have none until they are continued."""
    found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'signature'").fetchone()
    return bool(found[0])


def charge_of(row: Mapping[str, Any]) -> Charge:
    """The charge that a row of such a kind is."""
    event = event_from_dict(json.loads(row["detail"])["event"])
    return Charge((row["dataset"], row["unit"]), row["run"], row["lease"], row["kind"], event)


def _row(connection: sqlite3.Connection, seq: int) -> dict[str, Any] | None:
    query = f"SELECT {', '.join(COLUMNS)} FROM entry WHERE seq = ?"
    values = connection.execute(query, (seq,)).fetchone()
    return None if values is None else dict(zip(COLUMNS, values, strict=True))
