"""Charges as the rows have them, for who asks for more than totals.

Of rows that a snapshot vouches for the links of the chain are checked here, and the content of those asked
for: so nothing that was taken out or rewritten since goes unseen.
"""

import json
import sqlite3
from collections.abc import Collection
from dataclasses import replace

from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.ledger.replay import Charge, Replay, charge_of
from lightning_dp.privacy.ledger.rows import CHARGES, COLUMNS, ZERO_HASH, hash_fits

_MOST_RUNS = 500  # that one query names; beyond, all are read


def scan_charges(
    connection: sqlite3.Connection,
    replay: Replay,
    *,
    runs: Collection[str] | None,
    key: tuple[str, str] | None,
) -> list[Charge]:
    """Charges in order, closed reservations at the steps taken.

    Args:
        connection: inside the transaction of `replay`.
        replay: of all rows.
        runs: only of these; None is all.
        key: only of this data set and unit.

    Raises:
        LedgerCorrupt: a row is damaged, or was taken out.
    """
    if replay.base:
        _check_links(connection, replay)
    kinds = ", ".join(f"'{kind}'" for kind in (*CHARGES, "close"))
    where, values = f"kind IN ({kinds})", list[str]()
    if runs is not None and len(runs) <= _MOST_RUNS:
        where += f" AND run IN ({', '.join('?' * len(runs))})"
        values += runs
    if key is not None:
        where += " AND dataset = ? AND unit = ?"
        values += key
    found: dict[int, Charge] = {}
    query = f"SELECT {', '.join(COLUMNS)} FROM entry WHERE {where} ORDER BY seq"
    for one in connection.execute(query, values):
        row = dict(zip(COLUMNS, one, strict=True))
        if not hash_fits(row):
            replay.fail(row["seq"], "its hash does not fit its content")
        if row["kind"] != "close":
            found[row["seq"]] = charge_of(row)
            continue
        for seq, taken in json.loads(row["detail"])["steps_taken"].items():
            charge = found[int(seq)]
            assert isinstance(charge.event, GaussianEvent)
            charge.event = replace(charge.event, steps=taken)
    return [charge for charge in found.values() if runs is None or charge.run in runs]


def _check_links(connection: sqlite3.Connection, replay: Replay) -> None:
    last, number = ZERO_HASH, 0
    for seq, previous, digest in connection.execute("SELECT seq, prev_hash, hash FROM entry ORDER BY seq"):
        number += 1
        if seq != number or previous != last:
            replay.fail(number, "it was taken out or rewritten after others had followed it")
        last = digest
    if (number, last) != replay.reference:
        replay.fail(number, "the chain does not end where it did")
