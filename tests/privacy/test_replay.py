"""Folding the ledger's rows: what each does to accounts and plans, and at which row a forged chain is left.

Every chain here has hashes that fit, made by whoever could write them: what is tried is what stands behind.
"""

import contextlib
import os
import platform
import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lightning_dp.privacy.accounting import GaussianEvent, LaplaceEvent, event_to_dict
from lightning_dp.privacy.ledger import LedgerCorrupt
from lightning_dp.privacy.ledger.processes import process_start
from lightning_dp.privacy.ledger.replay import LeaseRecord, Replay
from lightning_dp.privacy.ledger.rows import COLUMNS, SCHEMA, SIGNATURES, ZERO_HASH, canonical, hash_row

STEP = GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=1)
OTHER = GaussianEvent(noise_multiplier=3.0, sampling_rate=0.05, steps=1)
KEY = ("meters", "user")
Row = dict[str, Any]


def of_steps(steps: int, event: GaussianEvent = STEP) -> dict[str, Any]:
    return event_to_dict(GaussianEvent(**{**vars(event), "steps": steps}))


def row(kind: str, lease: str = "", **detail: Any) -> tuple[str, str, dict[str, Any]]:
    return kind, lease, detail


BEGIN = (row("genesis"), row("register", relation="add/remove", delta=1e-5))


def opened(*plan: dict[str, Any], lease: str = "lease") -> tuple[str, str, dict[str, Any]]:
    return row("open", lease, plan=list(plan), process={"host": "elsewhere", "pid": 1, "started": 1.0})


def reserved(
    steps: int, event: GaussianEvent = STEP, lease: str = "lease"
) -> tuple[str, str, dict[str, Any]]:
    return row("reserve", lease, event=of_steps(steps, event))


def chained(said: Sequence[tuple[str, str, dict[str, Any]]]) -> list[Row]:
    """Rows of a chain, from what each says."""
    rows: list[Row] = []
    for seq, (kind, lease, detail) in enumerate(said, start=1):
        one = {"seq": seq, "prev_hash": rows[-1]["hash"] if rows else ZERO_HASH, "hash": ""}
        one |= {"dataset": KEY[0], "unit": KEY[1], "run": "run", "lease": lease, "kind": kind}
        one |= {"detail": canonical(detail), "time": "2026-01-01T00:00:00+00:00"}
        rows.append({**one, "hash": hash_row(one)})
    return rows


def rehashed(rows: list[Row], number: int, **changed: Any) -> list[Row]:
    """The rows with one that says something else, itself with a hash that fits; those after it are left."""
    one = {**rows[number - 1], **changed}
    return [*rows[: number - 1], {**one, "hash": hash_row(one)}, *rows[number:]]


def connected(
    rows: Sequence[Row], path: str | Path = ":memory:", *, signed: bool = False
) -> sqlite3.Connection:
    """A database that holds the rows."""
    connection = sqlite3.connect(path, isolation_level=None)
    schema = SCHEMA | SIGNATURES if signed else SCHEMA
    tables = [sql for sql in schema.values() if sql.startswith("CREATE TABLE")]
    for sql in tables:
        connection.execute(sql)
    marks = ", ".join("?" * len(COLUMNS))
    connection.executemany(
        f"INSERT INTO entry VALUES ({marks})", [tuple(one[name] for name in COLUMNS) for one in rows]
    )
    for sql in schema.values():
        if sql not in tables:
            connection.execute(sql)
    return connection


def loaded(*said: tuple[str, str, dict[str, Any]], anchored: dict[int, str] | None = None) -> Replay:
    replay = Replay(Path("ledger.sqlite"))
    replay.load(connected(chained([*BEGIN, *said])), anchored or {})
    return replay


def fails_at(rows: Sequence[Row], match: str, anchored: dict[int, str] | None = None) -> int | None:
    """The row from which on the ledger isn't trusted."""
    replay = Replay(Path("ledger.sqlite"))
    with pytest.raises(LedgerCorrupt, match=match) as caught:
        replay.load(connected(rows), anchored or {})
    assert replay.stale
    return caught.value.seq


# plans that are held


@pytest.mark.parametrize(
    ("charged", "undrawn", "spent"),
    [
        ([], {STEP: 10, OTHER: 4}, {}),
        ([reserved(3)], {STEP: 7, OTHER: 4}, {STEP: 3}),
        ([reserved(3), reserved(5)], {STEP: 2, OTHER: 4}, {STEP: 8}),
        ([reserved(3), reserved(8)], {STEP: 0, OTHER: 4}, {STEP: 11}),
        ([reserved(25)], {STEP: 0, OTHER: 4}, {STEP: 25}),
        ([reserved(10), reserved(2)], {STEP: 0, OTHER: 4}, {STEP: 12}),
        ([reserved(3, OTHER)], {STEP: 10, OTHER: 1}, {OTHER: 3}),
    ],
)
def test_a_charge_is_drawn_from_its_plan_and_never_below_it(charged, undrawn, spent) -> None:
    replay = loaded(opened(of_steps(10), of_steps(4, OTHER)), *charged)
    record = replay.leases["lease"]
    assert {event: record.undrawn[event] for event in (STEP, OTHER)} == undrawn
    assert +replay.accounts[KEY].counts == Counter(spent)
    assert replay.accounts[KEY].counts + record.undrawn == Counter(spent) + Counter(undrawn)


def test_a_charge_that_no_plan_has_is_counted_and_draws_nothing() -> None:
    replay = loaded(opened(of_steps(4, OTHER)), reserved(3))
    assert +replay.accounts[KEY].counts == Counter({STEP: 3})
    assert +replay.leases["lease"].undrawn == Counter({OTHER: 4})


def test_a_lease_without_a_plan_holds_none() -> None:
    assert loaded(opened()).held == {}
    assert list(loaded(opened(of_steps(1))).held[KEY]) == ["lease"]


@pytest.mark.parametrize("taken", [0, 1, 5, 6])
def test_a_close_leaves_the_steps_that_were_taken(taken: int) -> None:
    replay = loaded(
        opened(of_steps(10)), reserved(6), reserved(2), row("close", "lease", steps_taken={"4": taken})
    )
    assert +replay.accounts[KEY].counts == Counter({STEP: taken + 2})
    assert not replay.leases
    assert replay.held == {KEY: {}}


@pytest.mark.parametrize(
    ("charged", "closed"),
    [
        ([reserved(6)], {"4": -1}),
        ([reserved(6)], {"4": 7}),
        ([reserved(6)], {"3": 0}),
        ([reserved(6)], {"9": 1}),
        ([row("release", "lease", event=event_to_dict(LaplaceEvent(noise_multiplier=2.0)))], {"4": 0}),
        ([opened(lease="other"), reserved(6, lease="other")], {"5": 0}),
    ],
    ids=["below zero", "more than reserved", "no charge", "no entry", "not in steps", "of another lease"],
)
def test_a_close_that_gives_back_what_it_may_not_is_left_where_it_is(charged, closed) -> None:
    said = [*BEGIN, opened(of_steps(10)), *charged, row("close", "lease", steps_taken=closed)]
    assert fails_at(chained(said), "can't be closed at") == len(said)


# where a chain is left


def test_a_row_that_hangs_on_another_one_is_named() -> None:
    rows = chained([*BEGIN, opened(), reserved(1), reserved(2), reserved(3)])
    for before in ("0" * 64, "f" * 64, "7" * 64):
        assert fails_at(rehashed(rows, 5, prev_hash=before), "does not fit its content and the entry") == 5


def test_a_row_whose_hash_is_another_ones_is_named() -> None:
    rows = chained([*BEGIN, opened(), reserved(1)])
    for wrong in ("0" * 64, "f" * 64):
        assert fails_at([*rows[:-1], {**rows[-1], "hash": wrong}], "does not fit its content") == 4


def test_a_gap_is_named() -> None:
    rows = chained([*BEGIN, opened(), reserved(1), reserved(2)])
    moved = rehashed(rows, 5, seq=7)
    assert fails_at(moved, "it is missing; the next row says 7") == 5
    assert fails_at(rows[1:], "it is missing; the next row says 2") == 1


def test_no_rows_at_all_are_an_end_that_was_cut() -> None:
    assert fails_at([], "its first entry is gone") == 1


@pytest.mark.parametrize(
    "said",
    [
        row("unheard-of"),
        row("reserve", "lease"),
        row("reserve", "never opened", event=of_steps(1)),
        row("delta"),
    ],
    ids=["kind", "no event", "no lease", "no detail"],
)
def test_a_row_that_says_nothing_to_this_version_is_named(said) -> None:
    assert fails_at(chained([*BEGIN, opened(), said, reserved(1)]), "can't be accounted for") == 4


def test_tables_that_were_changed_are_no_ledger() -> None:
    connection = connected(chained(BEGIN))
    connection.execute("DROP TRIGGER entry_is_not_deleted")
    with pytest.raises(LedgerCorrupt, match="triggers that keep them append-only") as caught:
        Replay(Path("x")).load(connection, {})
    assert caught.value.seq == 1


def test_what_sqlite_finds_damaged_is_not_read_as_whole(tmp_path: Path) -> None:
    """The list of free pages is damaged: each row is still there and fits."""
    path = tmp_path / "ledger.sqlite"
    connected(chained(BEGIN), path).close()
    content = bytearray(path.read_bytes())
    content[36:40] = (5).to_bytes(4, "big")  # pages in that list, as the file format has it
    path.write_bytes(content)
    with (
        contextlib.closing(sqlite3.connect(path)) as connection,
        pytest.raises(LedgerCorrupt, match="SQLite finds the file damaged") as caught,
    ):
        Replay(path).load(connection, {})
    assert caught.value.seq == 3


def test_a_page_that_can_not_be_read_is_named_by_the_row_after_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    rows = chained([*BEGIN, opened(), *(reserved(1) for _ in range(200))])
    connected(rows, path).close()
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    content[-2 * size :] = b"\x55" * (2 * size)
    path.write_bytes(content)
    replay = Replay(path)
    with (
        contextlib.closing(sqlite3.connect(path)) as connection,
        pytest.raises(LedgerCorrupt, match="SQLite can't read it") as caught,
    ):
        replay._follow(connection)
    assert caught.value.seq == replay.seq + 1 > 2


def test_a_read_that_was_stopped_is_no_damage() -> None:
    connection = connected(chained([*BEGIN, opened(), *(reserved(1) for _ in range(50))]))
    replay = Replay(Path("x"))
    connection.set_progress_handler(lambda: 1, 20)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        replay._follow(connection)
    assert not replay.stale


def test_what_the_anchor_saw_has_to_be_there() -> None:
    rows = chained([*BEGIN, opened(), reserved(1)])
    digests = {one["seq"]: one["hash"] for one in rows}
    replay = Replay(Path("x"))
    replay.load(connected(rows), digests)
    assert replay.reference == (4, digests[4])
    assert fails_at(rows, "the anchor .* has seen entry 9", {9: "0" * 64}) == 5
    assert fails_at(rows, "the anchor .* has seen entry 5", {5: "0" * 64}) == 5
    for wrong in ("0" * 64, "f" * 64):
        assert fails_at(rows, "the anchor .* has seen entry 3", {3: wrong, 4: digests[4]}) == 3


# looking again


def grown(
    before: int, rows: Sequence[Row], path: Path, *, signed: bool = False
) -> tuple[Replay, sqlite3.Connection]:
    """What was read when there were so many rows, and a connection to all of them."""
    replay = Replay(path)
    with contextlib.closing(connected(rows[:before], signed=signed)) as connection:
        replay.load(connection, {})
    return replay, connected(rows, signed=signed)


def test_what_was_appended_since_is_folded(tmp_path: Path) -> None:
    rows = chained([*BEGIN, opened(of_steps(10)), reserved(1), reserved(2)])
    replay, connection = grown(4, rows, tmp_path)
    replay.advance(connection, {5: rows[4]["hash"]})
    assert +replay.accounts[KEY].counts == Counter({STEP: 3})
    replay.advance(connection, {})
    assert replay.reference == (5, rows[4]["hash"])


@pytest.mark.parametrize("reason", range(6))
def test_another_past_is_found_whatever_its_hash_is(reason: int, tmp_path: Path) -> None:
    """Of several rewritten pasts some have a greater hash and some a smaller one."""
    rows = chained([*BEGIN, opened(), reserved(1)])
    replay = Replay(tmp_path)
    replay.load(connected(rows), {})
    other = chained([*BEGIN, opened(), reserved(reason + 2)])
    with pytest.raises(LedgerCorrupt, match="was last when this process looked") as caught:
        replay.advance(connected(other), {})
    assert caught.value.seq == 4
    assert not replay.holds(connected(other), 4, other[3]["hash"])


def test_a_past_that_became_shorter_is_found(tmp_path: Path) -> None:
    rows = chained([*BEGIN, opened(), reserved(1)])
    replay = Replay(tmp_path)
    replay.load(connected(rows), {})
    with pytest.raises(LedgerCorrupt, match="was last when this process looked"):
        replay.advance(connected(rows[:3]), {})


def test_who_has_no_key_appends_nothing_to_a_signed_ledger(tmp_path: Path) -> None:
    """Rows that fit, whose end nobody signed, are seen at the next look too, and only then."""
    rows = chained([*BEGIN, row("key", public_key="aa"), opened(), reserved(1)])
    replay, connection = grown(2, rows[:2], tmp_path, signed=True)
    replay.advance(connection, {})  # nothing new, and nothing to sign
    with pytest.raises(LedgerCorrupt, match="none of the ledger's keys has signed it") as caught:
        replay.advance(connected(rows, signed=True), {})
    assert caught.value.seq == 5


@pytest.mark.parametrize("seq", [True, "3", 3.0, None])
def test_an_entry_has_a_number(seq: Any) -> None:
    rows = chained([*BEGIN, opened()])
    replay, connection = Replay(Path("x")), connected(rows)
    replay.load(connection, {})
    assert not replay.holds(connection, seq, rows[2]["hash"])
    assert replay.holds(connection, 3, rows[2]["hash"])


def test_what_lies_below_a_snapshot_is_asked_of_the_file(tmp_path: Path) -> None:
    rows = chained([*BEGIN, opened(lease="b"), opened(), reserved(3), reserved(1, lease="b"), reserved(2)])
    replay, connection = Replay(Path("x")), connected(rows)
    replay.load(connection, {})
    replay.base = 6
    replay.hashes = {7: rows[6]["hash"]}
    for record in replay.leases.values():
        record.charges = {seq: charge for seq, charge in record.charges.items() if seq > 6}
    for number, one in enumerate(rows, start=1):
        assert replay.holds(connection, number, one["hash"])
        for wrong in ("0" * 64, "f" * 64, None):
            assert not replay.holds(connection, number, wrong)
    assert not replay.holds(connection, 8, rows[6]["hash"])
    found = {seq for seq in range(9) if replay.charge(seq, lease="lease") is not None}
    assert found == {5, 7}
    assert {seq for seq in range(9) if replay.charge(seq, lease="b") is not None} == {6}
    assert replay.charge(5, lease="nobody's") is None
    charge = replay.charge(5, lease="lease")
    assert charge is not None
    assert (charge.key, charge.run, charge.lease, charge.kind) == (KEY, "run", "lease", "reserve")
    assert charge.event == GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=3)


# data sets


def test_of_a_data_sets_contents_the_newest_are_remembered() -> None:
    replay = loaded(*(row("content", mark=number) for number in range(20)))
    assert [one["mark"] for one in replay.datasets["meters"].contents] == list(range(4, 20))
    assert not replay.datasets["meters"].accepts
    assert loaded(row("content", mark=1), row("accept")).datasets["meters"].accepts
    assert not loaded(row("accept"), row("content", mark=1)).datasets["meters"].accepts


def test_overrides_names_and_limits_are_kept_apart() -> None:
    said = (
        row("alias", name="old name"),
        row("override", reason="a reason"),
        row("override", reason="fewer", finer_unit="window"),
    )
    replay = loaded(row("limit", epsilon=3.0), *said)
    assert replay.aliases == {"old name": "meters"}
    assert replay.name_of("old name") == "meters"
    assert replay.name_of("another") == "another"
    assert replay.accounts[KEY].beside == {"window": "fewer"}
    assert replay.accounts[KEY].limit == 3.0
    assert loaded(*said, row("limit", epsilon=2.0)).accounts[KEY].beside == {}


# who still runs


def record_of(host: str, *, seen: timedelta, **process: Any) -> LeaseRecord:
    return LeaseRecord(
        KEY, "run", {"host": host, **process}, Counter(), (datetime.now(UTC) - seen).isoformat()
    )


@pytest.mark.parametrize("host", ["\0", "￿"], ids=["before all names", "after all names"])
def test_a_process_elsewhere_is_taken_to_run_for_a_day(host: str) -> None:
    """Its number here is another process's: ours, which runs."""
    here = {"pid": os.getpid(), "started": process_start(os.getpid())}
    assert record_of(host, seen=timedelta(hours=23, minutes=59), **here).is_running()
    assert not record_of(host, seen=timedelta(hours=24, minutes=1), **here).is_running()
    gone = {"pid": os.getpid(), "started": "never"}
    assert record_of(host, seen=timedelta(0), **gone).is_running()


def test_a_process_here_is_asked_for() -> None:
    here, started = platform.node(), process_start(os.getpid())
    long_ago = timedelta(days=40)
    assert record_of(here, seen=long_ago, pid=os.getpid(), started=started).is_running()
    assert not record_of(here, seen=timedelta(0), pid=os.getpid(), started="another time").is_running()


def test_what_has_ended_does_not_begin_again() -> None:
    record = record_of(platform.node(), seen=timedelta(0), pid=os.getpid(), started="another time")
    assert not record.is_running()
    record.process["started"] = process_start(os.getpid())
    assert not record.is_running()
