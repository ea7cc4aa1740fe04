"""The whole ledger read and checked, with what could be checked and what could not in plain words."""

from dataclasses import dataclass

from lightning_dp.privacy.ledger.anchor import read_anchor
from lightning_dp.privacy.ledger.connections import Connection
from lightning_dp.privacy.ledger.keys import head_message, key_at_hand, signature_fits
from lightning_dp.privacy.ledger.replay import Replay, has_signatures
from lightning_dp.privacy.ledger.rows import Entry
from lightning_dp.privacy.ledger.snapshot import read_snapshot, state_of
from lightning_dp.privacy.ledger.storage import LedgerFile


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A ledger in which nothing contradicts anything.

    Attributes:
        head: (seq, hash) of the last entry.
        identity: hash of the first one, which tells ledgers apart.
        anchored: how many entries the anchor has seen.
        keys: public keys that sign, and from which entry on.
        signatures: how many there are; each covers all entries before it.
        own_key: the public key that this process signs with; None where there is none.
        snapshot: the entry up to which a snapshot was compared; 0 for none.
        runs: ids of all runs that took a lease.
    """

    head: tuple[int, str]
    identity: str
    anchored: int
    keys: dict[str, int]
    signatures: int
    own_key: str | None
    snapshot: int
    runs: frozenset[str]

    @property
    def sentences(self) -> list[str]:
        """What was checked, and what this can't find, one sentence each."""
        number = self.head[0]
        said = [f"{number} entries: the chain of hashes holds, and the append-only guards are there."]
        missing = (
            "" if self.anchored >= number else ": the others could have been cut off or put in unseen by it"
        )
        said.append(f"The anchor holds {self.anchored} of {number} entries{missing}.")
        if self.keys:
            first = min(self.keys.values())
            before = "" if first == 1 else f", and the {first - 1} before it are vouched for by what follows"
            named = ", ".join(f"{key[:16]}… (from entry {seq})" for key, seq in self.keys.items())
            said.append(f"Entries are signed from entry {first} on{before}, by {named}.")
            if self.own_key is not None and self.own_key not in self.keys:
                said.append(
                    f"The key at hand, {self.own_key[:16]}…, signed none of them: it is new to this ledger, "
                    "or the history that it signed was replaced."
                )
        else:
            said.append(
                "No entry is signed, so anybody who may write the file could have written all of them."
            )
            if self.own_key is not None:
                said.append(
                    f"The key at hand, {self.own_key[:16]}…, should sign it: unless it is new, the history "
                    "that it signed was replaced."
                )
        if self.snapshot:
            said.append(f"The snapshot up to entry {self.snapshot} says what these entries say.")
        return said


def examine(file: LedgerFile) -> Examination:
    """Read and check every row, signature, the anchor and the snapshot.

    Raises:
        LedgerCorrupt: names the first entry that can't be trusted.
    """
    key = key_at_hand(file.path)
    snapshot = read_snapshot(file.path, key=key)
    replay = Replay(file.path)
    identity: list[str] = []
    runs: set[str] = set()
    number = 0

    def each(entry: Entry) -> None:
        if not identity:
            identity.append(entry.hash)
        runs.add(entry.run)
        if snapshot is not None and entry.seq == snapshot.seq:
            if entry.hash != snapshot.hash:
                replay.fail(entry.seq, "a snapshot that this key signed has another entry here")
            if state_of(replay) != snapshot.state:
                replay.fail(entry.seq, "a snapshot that this key signed does not say what its entries say")

    def then(connection: Connection, replay: Replay) -> None:
        nonlocal number
        if snapshot is not None and snapshot.seq > replay.seq:
            replay.fail(
                replay.seq + 1, f"a snapshot that this key signed has entry {snapshot.seq}: it was cut"
            )
        if not has_signatures(connection):
            return
        for seq, public, signature in connection.execute("SELECT seq, key, signature FROM signature"):
            digest = replay.hashes.get(seq, "")
            known = replay.keys.get(public, seq + 1) <= seq
            if not known or not signature_fits(head_message(seq, digest), public=public, signature=signature):
                replay.fail(min(seq, replay.seq), f"the signature at entry {seq} does not fit the chain")
            number += 1

    file.read_all(each, then=then, replay=replay)
    return Examination(
        head=replay.reference,
        identity=identity[0],
        anchored=len(read_anchor(file.path) or ()),
        keys=dict(replay.keys),
        signatures=number,
        own_key=None if key is None else key.public,
        snapshot=0 if snapshot is None else snapshot.seq,
        runs=frozenset(runs - {""}),
    )
