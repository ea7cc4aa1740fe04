"""One row of the ledger: its columns, its table with the append-only triggers, its hash."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ChargeKind = Literal["reserve", "release", "audit"]

CHARGES = ("reserve", "release", "audit")
ZERO_HASH = "0" * 64
APPLICATION_ID = 0x4C445031  # "LDP1", so that another program's database is not taken for a ledger
FORMAT = 1  # of rows
SIGNED = 2  # of files whose entries are signed
COLUMNS = ("seq", "prev_hash", "hash", "dataset", "unit", "run", "lease", "kind", "detail", "time")

# BEFORE INSERT also stops INSERT OR REPLACE, whose hidden delete does not fire delete triggers.
SCHEMA = {
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
        f"(SELECT hash FROM entry ORDER BY seq DESC LIMIT 1), '{ZERO_HASH}') BEGIN "
        "SELECT RAISE(ABORT, 'the ledger is append-only: an entry must follow the last one'); END"
    ),
}

# What a file has besides once its entries are signed: one row a transaction, over the chain's end.
SIGNATURES = {
    "signature": (
        "CREATE TABLE signature (seq INTEGER PRIMARY KEY, key TEXT NOT NULL, signature TEXT NOT NULL)"
    ),
    "signature_is_not_updated": (
        "CREATE TRIGGER signature_is_not_updated BEFORE UPDATE ON signature BEGIN "
        "SELECT RAISE(ABORT, 'the ledger is append-only: no update'); END"
    ),
    "signature_is_not_deleted": (
        "CREATE TRIGGER signature_is_not_deleted BEFORE DELETE ON signature BEGIN "
        "SELECT RAISE(ABORT, 'the ledger is append-only: no delete'); END"
    ),
    "signature_is_appended": (
        "CREATE TRIGGER signature_is_appended BEFORE INSERT ON signature WHEN "
        "NEW.seq IS NOT (SELECT max(seq) FROM entry) OR NEW.seq IN (SELECT seq FROM signature) BEGIN "
        "SELECT RAISE(ABORT, 'the ledger is append-only: a signature is of the last entry'); END"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the ledger.

    Attributes:
        seq: ≥ 1, without gaps.
        prev_hash: the previous row's hash.
        hash: SHA-256 over all other fields, hexadecimal.
        dataset, unit, run, lease: what the row belongs to; empty where that does not apply.
        kind: genesis, key, register, delta, limit, alias, content, accept, open, reserve, release, audit,
            override or close.
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


def canonical(value: object) -> str:
    """The one JSON text of a value; a NaN or an infinity is a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def hash_row(row: Mapping[str, Any]) -> str:
    """SHA-256 over all columns but the hash itself; `prev_hash` makes it a chain."""
    fields = [row[name] for name in COLUMNS if name != "hash"]
    return hashlib.sha256(f"lightning-dp ledger {FORMAT}\n{canonical(fields)}".encode()).hexdigest()


def hash_fits(row: Mapping[str, Any]) -> bool:
    """Whether the row's hash is the one of its content."""
    try:
        return bool(row["hash"] == hash_row(row))
    except (TypeError, ValueError):  # damage can turn a text into bytes or a NaN, which JSON lacks
        return False
