"""What the ledger says up to some entry, folded and signed, so that nobody need read all of it again.

A snapshot is a file beside the ledger and no part of it: losing it costs time. It is believed by a process
that holds the key which signed it, and only while the ledger holds the entry that it ends at. A ledger
without that entry was rewritten or cut, and is refused. `verify` reads everything and folds it anew.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_dp.privacy.accounting import event_from_dict, event_to_dict
from lightning_dp.privacy.ledger.keys import SigningKey, signature_fits
from lightning_dp.privacy.ledger.replay import Account, DataSet, LeaseRecord, Replay
from lightning_dp.privacy.ledger.rows import canonical

EVERY = 1000
"""Rows that are read again rather than written into another snapshot."""

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot whose signature fits.

    Attributes:
        seq, hash: of the entry that it ends at.
        state: what was folded, as JSON.
    """

    seq: int
    hash: str
    state: str

    def put_into(self, replay: Replay) -> None:
        """Make `replay` what it was when the snapshot was taken."""
        state = json.loads(self.state)
        replay.reset()
        replay.seq, replay.hash, replay.base = self.seq, self.hash, self.seq
        replay.hashes[self.seq] = self.hash
        for dataset, unit, account in state["accounts"]:
            counts = Counter({event_from_dict(event): number for event, number in account.pop("counts")})
            runs = dict.fromkeys(account.pop("runs"))
            replay.accounts[dataset, unit] = Account(**account, counts=counts, runs=runs)
        replay.datasets = {name: DataSet(**known) for name, known in state["datasets"].items()}
        replay.aliases, replay.keys = state["aliases"], state["keys"]
        for lease, (key, run, process, plan, last_seen) in state["leases"].items():
            undrawn = Counter({event_from_dict(event): number for event, number in plan})
            replay.open_lease(lease, LeaseRecord((key[0], key[1]), run, process, undrawn, last_seen))


def state_of(replay: Replay) -> str:
    """What was folded, as the one JSON text that these rows have."""
    return canonical(
        {
            "accounts": [
                [
                    dataset,
                    unit,
                    {
                        "relation": account.relation,
                        "delta": account.delta,
                        "limit": account.limit,
                        "beside": account.beside,
                        "counts": _counted(account.counts),
                        "runs": list(account.runs),
                        "last_charge": account.last_charge,
                    },
                ]
                for (dataset, unit), account in replay.accounts.items()
            ],
            "datasets": {name: vars(known) for name, known in replay.datasets.items()},
            "aliases": replay.aliases,
            "keys": replay.keys,
            "leases": {
                name: [record.key, record.run, record.process, _counted(record.undrawn), record.last_seen]
                for name, record in replay.leases.items()
            },
        }
    )


def write_snapshot(ledger: Path, replay: Replay, *, key: SigningKey) -> None:
    """Keep what was folded; a disk that takes no more is no reason to stop."""
    state = state_of(replay)
    header: dict[str, Any] = {
        "format": _FORMAT,
        "seq": replay.seq,
        "hash": replay.hash,
        "sha256": hashlib.sha256(state.encode()).hexdigest(),
        "public_key": key.public,
    }
    header["signature"] = key.sign(_message(header))
    replace_quietly(snapshot_path(ledger, key=key), canonical(header) + "\n" + state)


def replace_quietly(path: Path, text: str) -> None:
    """Write a file that only saves time, for its owner alone; what can't be written is left out."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            handle = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(text)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def read_snapshot(ledger: Path, *, key: SigningKey | None) -> Snapshot | None:
    """The snapshot that this key signed; None where there is none, or it is damaged or of somebody else."""
    if key is None:
        return None
    try:
        first, _, state = snapshot_path(ledger, key=key).read_text().partition("\n")
        header = json.loads(first)
        signature = header.pop("signature")
        sound = (
            header["format"] == _FORMAT
            and header["public_key"] == key.public
            and header["sha256"] == hashlib.sha256(state.encode()).hexdigest()
            and signature_fits(_message(header), public=key.public, signature=signature)
        )
        return Snapshot(seq=header["seq"], hash=header["hash"], state=state) if sound else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def snapshot_path(ledger: Path, *, key: SigningKey) -> Path:
    """Where the snapshot of the owner of this key is."""
    return ledger.with_name(f"{ledger.name}-snapshot-{key.public[:16]}")


def _message(header: dict[str, Any]) -> str:
    return f"lightning-dp ledger snapshot\n{canonical(header)}"


def _counted(counts: Counter[Any]) -> list[list[Any]]:
    counted = ([event_to_dict(event), number] for event, number in counts.items() if number)
    return sorted(counted, key=canonical)
