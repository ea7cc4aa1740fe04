"""The ledger's promises, each with the fault it guards against planted in real SQLite files."""

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_dp.commands.ledger import main
from lightning_dp.privacy.accounting import (
    COARSE_INTERVAL,
    FINE_INTERVAL,
    Event,
    GaussianEvent,
    LaplaceEvent,
    epsilon_pld,
    epsilon_rdp,
    rdp_curve,
)
from lightning_dp.privacy.ledger import (
    BudgetExceeded,
    Lease,
    Ledger,
    LedgerCorrupt,
    LedgerError,
    LedgerMissing,
    default_ledger_path,
    filter_epsilon,
    lease as lease_module,
    storage as storage_module,
)
from lightning_dp.privacy.ledger.anchor import read_anchor
from lightning_dp.privacy.ledger.filter import ORDERS
from lightning_dp.privacy.ledger.replay import Replay
from lightning_dp.privacy.ledger.rows import COLUMNS, SCHEMA

EVENT = GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=10)
SEED = int(os.environ.get("FUZZ_SEED", "0"))
DATA, UNIT, DELTA = "meters", "user", 1e-5
ACCOUNT: dict[str, Any] = {"unit": UNIT}


@pytest.fixture
def tmp_path(memory_folder: Path) -> Path:
    """Hundreds of synced commits: in memory they cost nothing."""
    return memory_folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "owner" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    made = Ledger(path, lock_timeout=5)
    made.register(DATA, unit=UNIT, delta=DELTA)
    return made


def open_run(ledger: Ledger, run: str = "run", **options: Any) -> Lease:
    return ledger.open_run(DATA, unit=UNIT, run=run, **options)


def steps(ledger: Ledger, run: str | None = None) -> int:
    return sum(e.steps for e in ledger.events(DATA, unit=UNIT, run=run) if isinstance(e, GaussianEvent))


def anchor(path: Path) -> Path:
    return path.with_name(path.name + "-anchor")


def limit_for(number: int) -> float:
    """A limit that holds `number` steps of EVENT and not one half more."""
    limit = 0.01
    while filter_epsilon([replace(EVENT, steps=number)], DELTA, limit_epsilon=limit) > limit:
        limit *= 1.001
    return limit


def reserve_until_error(lease: Lease, *, match: str, note: str = "") -> int:
    """Reserve until it fails with a sentence that has `match`; return the steps reserved before."""
    reserved = 0
    while True:
        try:
            lease.reserve(EVENT, note=note)
        except LedgerError as error:
            if re.search(match, str(error)):
                return reserved
            raise
        reserved += EVENT.steps


def in_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A fresh interpreter that runs `code` with the ledger's names imported."""
    preamble = """
        import os, sys, signal, time
        from lightning_dp.privacy.accounting import GaussianEvent
        from lightning_dp.privacy.ledger import *
        from lightning_dp.privacy.ledger import BudgetExceeded, Ledger, LedgerError
        EVENT = GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=10)
        ledger = Ledger(sys.argv[1])
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- charges and what they cost -------------------------------------------------------------------


def test_charges_of_all_runs_add_up_as_pld_says(ledger: Ledger) -> None:
    other = GaussianEvent(noise_multiplier=1.5, sampling_rate=0.1, steps=7)
    noise = LaplaceEvent(noise_multiplier=3.0)
    with open_run(ledger, "one") as one, open_run(ledger, "two") as two:
        one.reserve(EVENT)
        two.reserve(other)
        one.reserve(EVENT)
        two.reserve(noise, kind="release", note="mean load")
    assert ledger.events(DATA, unit=UNIT) == [EVENT, other, EVENT, noise]
    assert ledger.events_by_run(DATA, unit=UNIT) == {"one": [EVENT, EVENT], "two": [other, noise]}
    total = ledger.epsilon(DATA, unit=UNIT)
    assert total == epsilon_pld([replace(EVENT, steps=20), other, noise], DELTA)
    one_epsilon = ledger.epsilon_of_run("one", dataset=DATA, unit=UNIT)
    assert one_epsilon == epsilon_pld([replace(EVENT, steps=20)], DELTA) < total
    assert ledger.epsilon(DATA, unit=UNIT, delta=1e-3) < total


def test_an_empty_account_costs_nothing(ledger: Ledger) -> None:
    assert ledger.epsilon(DATA, unit=UNIT) == 0
    open_run(ledger)
    assert ledger.epsilon_of_run("run", dataset=DATA, unit=UNIT) == 0


def test_a_reservation_is_seen_by_others_when_reserve_returns(ledger: Ledger, path: Path) -> None:
    lease = open_run(ledger)
    entry = lease.reserve(EVENT)
    assert Ledger(path).contains(*entry.reference)
    assert Ledger(path).head() == entry.reference == lease.head


def test_entries_hold_mechanisms_and_no_epsilon(ledger: Ledger) -> None:
    open_run(ledger).reserve(EVENT)
    detail = ledger.entries(DATA)[-1].detail
    assert detail["event"] == {
        "type": "GaussianEvent",
        "noise_multiplier": 2.0,
        "sampling_rate": 0.05,
        "steps": 10,
    }


def test_a_clean_end_gives_back_what_was_not_used(ledger: Ledger) -> None:
    lease = open_run(ledger)
    lease.reserve(EVENT)
    last = lease.reserve(EVENT)
    lease.close(steps_taken={last.seq: 3})
    assert steps(ledger) == 13
    assert [e.kind for e in ledger.entries(DATA)[-2:]] == ["reserve", "close"]  # nothing was rewritten


def test_without_a_clean_end_nothing_is_given_back(ledger: Ledger) -> None:
    lease = open_run(ledger)
    first = lease.reserve(EVENT)
    del lease
    resumed = open_run(ledger, parent=first.reference)
    with pytest.raises(ValueError, match="no Gaussian reservation of this lease"):
        resumed.close(steps_taken={first.seq: 0})
    resumed.reserve(EVENT)
    resumed.close()
    assert steps(ledger, "run") == 20


@pytest.mark.parametrize("taken", [-1, 11, 2.5, None])
def test_a_reservation_can_not_be_closed_at_a_wrong_number(ledger: Ledger, taken: Any) -> None:
    lease = open_run(ledger)
    entry = lease.reserve(EVENT)
    with pytest.raises(ValueError, match="10 were reserved"):
        lease.close(steps_taken={entry.seq: taken})
    assert steps(ledger) == 10


def test_a_closed_lease_charges_no_more(ledger: Ledger) -> None:
    lease = open_run(ledger)
    lease.close()
    for use in (lambda: lease.reserve(EVENT), lease.close, lambda: lease.override("why")):
        with pytest.raises(LedgerError, match="This lease is closed"):
            use()


def test_an_exception_ends_the_lease_at_full_charge(ledger: Ledger) -> None:
    def train() -> None:
        with open_run(ledger) as lease:
            lease.reserve(EVENT)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train()
    assert steps(ledger) == 10
    assert ledger.entries(DATA)[-1].kind == "close"


def test_overrides_and_audits_are_entries(ledger: Ledger) -> None:
    lease = open_run(ledger)
    lease.override("BatchNorm is frozen")
    lease.reserve(LaplaceEvent(noise_multiplier=4.0), kind="audit", note="canaries")
    assert ledger.entries(DATA)[-2].detail == {"reason": "BatchNorm is frozen"}
    assert ledger.events(DATA, unit=UNIT) == [LaplaceEvent(noise_multiplier=4.0)]
    with pytest.raises(ValueError, match="reason is empty"):
        lease.override(" ")
    with pytest.raises(ValueError, match="kind is 'gift'"):
        lease.reserve(EVENT, kind="gift")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one step"):
        lease.reserve(replace(EVENT, steps=0))


def test_registering_again_is_idempotent_and_facts_do_not_change(ledger: Ledger) -> None:
    head = ledger.head()
    ledger.register(DATA, unit=UNIT, delta=DELTA)
    assert ledger.head() == head
    ledger.register(DATA, unit=UNIT, delta=DELTA, limit_epsilon=4)
    ledger.register(DATA, unit=UNIT, delta=DELTA, limit_epsilon=4)
    ledger.register(DATA, unit=UNIT, delta=DELTA)
    assert ledger.budget(DATA, unit=UNIT).limit_epsilon == 4
    with pytest.raises(ValueError, match="delta of data set 'meters'"):
        ledger.register(DATA, unit=UNIT, delta=1e-6)
    with pytest.raises(ValueError, match="set-limit meters --unit user --epsilon 5"):
        ledger.register(DATA, unit=UNIT, delta=DELTA, limit_epsilon=5)
    with pytest.raises(ValueError, match="relation is 'replace_one'"):
        ledger.register(DATA, unit=UNIT, delta=DELTA, relation="replace_one")
    ledger.register(DATA, unit="window", delta=1e-6)
    assert ledger.accounts() == [(DATA, UNIT), (DATA, "window")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", ""),
        ("dataset", "a\nb"),
        ("unit", " "),
        ("delta", 0.0),
        ("delta", 1.0),
        ("limit_epsilon", -1.0),
        ("limit_epsilon", float("inf")),
    ],
)
def test_impossible_facts_are_refused_before_anything_is_written(path: Path, field: str, value: Any) -> None:
    facts: dict[str, Any] = {"dataset": DATA, "unit": UNIT, "delta": DELTA, field: value}
    with pytest.raises(ValueError, match=field):
        Ledger(path).register(facts.pop("dataset"), **facts)
    assert not path.exists()


def test_unregistered_accounts_and_runs_are_named(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="its units are user"):
        ledger.open_run(DATA, unit="window", run="run")
    with pytest.raises(LedgerError, match="'others' with unit 'user' is not registered"):
        ledger.epsilon("others", unit=UNIT)
    with pytest.raises(LedgerError, match="Run 'typo' has no entry"):
        ledger.epsilon_of_run("typo", dataset=DATA, unit=UNIT)


# --- budgets --------------------------------------------------------------------------------------


def test_a_limit_stops_the_charge_that_would_pass_it(ledger: Ledger) -> None:
    limit = limit_for(25)
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit)
    lease = open_run(ledger, "one")
    lease.reserve(EVENT)
    lease.reserve(EVENT)
    before = ledger.head()
    with pytest.raises(BudgetExceeded, match="set-limit meters --unit user") as caught:
        lease.reserve(EVENT)
    assert ledger.head() == before
    error = caught.value
    assert error.spent_epsilon <= error.limit_epsilon == limit < error.needed_epsilon
    assert 5 <= error.steps_left < 10
    lease.reserve(replace(EVENT, steps=error.steps_left))
    with pytest.raises(BudgetExceeded):
        lease.reserve(replace(EVENT, steps=1))
    with pytest.raises(BudgetExceeded):  # another run draws on the same account
        open_run(ledger, "two").reserve(EVENT)
    assert ledger.epsilon(DATA, unit=UNIT) <= limit
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=2 * limit)
    lease.reserve(EVENT)
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=0)
    with pytest.raises(BudgetExceeded):
        lease.reserve(EVENT)
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=None)
    lease.reserve(EVENT)


def test_without_the_check_the_limit_is_passed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=0)
    monkeypatch.setattr(lease_module, "check_budget", lambda *_, **__: None)
    open_run(ledger).reserve(EVENT)
    assert ledger.epsilon(DATA, unit=UNIT) > 0


def test_units_have_budgets_of_their_own(ledger: Ledger) -> None:
    ledger.register(DATA, unit="window", delta=DELTA, limit_epsilon=0)
    open_run(ledger).reserve(EVENT)
    with pytest.raises(BudgetExceeded):
        ledger.open_run(DATA, unit="window", run="run").reserve(EVENT)


def test_a_limit_is_reached_by_audits_too(ledger: Ledger) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit_for(25))
    lease = open_run(ledger)
    lease.reserve(EVENT, kind="audit")
    lease.reserve(EVENT, kind="release")
    for kind in ("audit", "release", "reserve"):
        with pytest.raises(BudgetExceeded):
            lease.reserve(EVENT, kind=kind)  # type: ignore[arg-type]


def test_two_units_of_one_data_set_are_two_accounts(ledger: Ledger) -> None:
    """Also where one run, by mistake or on purpose, charges both."""
    ledger.register(DATA, unit="window", delta=DELTA)
    with open_run(ledger, "both") as lease, ledger.open_run(DATA, unit="window", run="both") as other:
        lease.reserve(EVENT)
        for _ in range(3):
            other.reserve(EVENT)
    per_user, per_window = (epsilon_pld([replace(EVENT, steps=n)], DELTA) for n in (10, 30))
    for unit, expected, number in ((UNIT, per_user, 1), ("window", per_window, 3)):
        assert ledger.epsilon(DATA, unit=unit) == pytest.approx(expected, rel=1e-6)
        assert ledger.epsilon_of_run("both", dataset=DATA, unit=unit) == pytest.approx(expected, rel=1e-6)
        assert len(ledger.events(DATA, unit=unit)) == number
        assert len(ledger.events_by_run(DATA, unit=unit)["both"]) == number
    assert ledger.charges_of(["both"])[DATA, "window"] == (DELTA, {"both": [EVENT] * 3})


@pytest.mark.parametrize("finer", ["window", "record", "event", "household"])
def test_a_limit_on_a_coarser_unit_stops_finer_ones(ledger: Ledger, finer: str) -> None:
    """Nobody knows how many windows a user has, so a user's limit can't see what windows lose."""
    ledger.register(DATA, unit=finer, delta=DELTA)
    running = ledger.open_run(DATA, unit=finer, run="fine", plan=[EVENT])
    running.reserve(EVENT)
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=3)
    head = ledger.head()
    match = (
        f"limit of ε = 3 per user, and a charge per {finer} .*ledger allow meters --unit user --finer {finer}"
    )
    with pytest.raises(BudgetExceeded, match=match):
        running.reserve(EVENT)
    with pytest.raises(BudgetExceeded, match=match):
        ledger.open_run(DATA, unit=finer, run="next", plan=[EVENT])
    assert ledger.head() == head
    open_run(ledger, "coarse").reserve(EVENT)
    with pytest.raises(ValueError, match="say in words"):
        ledger.allow(DATA, unit=UNIT, finer=finer, reason=" why ")
    ledger.allow(DATA, unit=UNIT, finer=finer, reason="shown to nobody but us")
    running.reserve(EVENT)
    assert ledger.budget(DATA, unit=UNIT).limit_epsilon == 3
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=2)
    with pytest.raises(BudgetExceeded, match="limit of ε = 2 per user"):
        running.reserve(EVENT)
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=None)
    running.reserve(EVENT)


def test_what_is_not_finer_needs_no_allowance(ledger: Ledger) -> None:
    ledger.register(DATA, unit="window", delta=DELTA, limit_epsilon=3)
    open_run(ledger).reserve(EVENT)
    ledger.register("others", unit="record", delta=DELTA)
    ledger.open_run("others", unit="record", run="run").reserve(EVENT)
    with pytest.raises(ValueError, match="not finer than 'window'"):
        ledger.allow(DATA, unit="window", finer=UNIT, reason="it is the other way")


def test_what_a_clean_end_gives_back_can_be_charged_again(ledger: Ledger) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit_for(10))
    lease = open_run(ledger, "one")
    entry = lease.reserve(EVENT)
    with pytest.raises(BudgetExceeded):
        open_run(ledger, "two").reserve(EVENT)
    lease.close(steps_taken={entry.seq: 0})
    open_run(ledger, "two").reserve(EVENT)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("rate", "number"), [(1.0, 1), (1.0, 30), (0.1, 300), (0.01, 3000), (0.002, 3000)])
def test_the_filter_is_never_below_the_reported_epsilon(sigma: float, rate: float, number: int) -> None:
    events: list[Event] = [GaussianEvent(noise_multiplier=sigma, sampling_rate=rate, steps=number)]
    events.append(LaplaceEvent(noise_multiplier=5.0))
    # The coarse figure is never below the fine one, and ten times cheaper; for a small ε it is too coarse.
    reported = epsilon_pld(events, DELTA, interval=COARSE_INTERVAL if sigma < 4 else FINE_INTERVAL)
    for limit in (0.5, 8.0, epsilon_rdp(events, DELTA)):
        assert filter_epsilon(events, DELTA, limit_epsilon=limit) >= reported
    more = [*events, GaussianEvent(noise_multiplier=sigma, sampling_rate=rate)]
    assert filter_epsilon(more, DELTA, limit_epsilon=8) > filter_epsilon(events, DELTA, limit_epsilon=8)


def test_the_filter_is_a_union_of_fixed_order_filters() -> None:
    # Its δ is shared over the orders: each order alone, at its share, is a valid filter.
    events = [replace(EVENT, steps=500)]
    epsilon = filter_epsilon(events, DELTA, limit_epsilon=3)
    orders = np.array(ORDERS)
    exponent = (orders - 1) * (500 * rdp_curve(replace(EVENT, steps=1), ORDERS) - epsilon)
    # Canonne, Kamath & Steinke, Prop. 12: the δ of one order at this ε.
    deltas = [
        float(pow(2.718281828459045, x)) / (a - 1) * (1 - 1 / a) ** a
        for x, a in zip(exponent, orders, strict=True)
        if x < 50
    ]
    assert 0.2 * DELTA < min(deltas) < DELTA
    assert epsilon < 1.1 * epsilon_rdp(events, DELTA)


def test_a_plan_is_held_while_its_process_lives(ledger: Ledger) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit_for(40))
    plan = [replace(EVENT, steps=30)]
    one = open_run(ledger, "one", plan=plan)
    budget = ledger.budget(DATA, unit=UNIT)
    assert budget.filter_epsilon == 0
    assert budget.held_epsilon is not None
    assert budget.held_epsilon > 0
    with pytest.raises(BudgetExceeded, match="plans of running leases"):
        open_run(ledger, "two", plan=plan)
    with pytest.raises(BudgetExceeded):
        open_run(ledger, "two").reserve(replace(EVENT, steps=20))
    for _ in range(3):
        one.reserve(EVENT)  # draws on its own plan
    assert ledger.budget(DATA, unit=UNIT).held_epsilon == ledger.budget(DATA, unit=UNIT).filter_epsilon
    open_run(ledger, "two").reserve(EVENT)
    assert steps(ledger) == 40


def test_a_resumed_run_is_not_in_the_way_of_its_own_plan(ledger: Ledger) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit_for(40))
    open_run(ledger, "one", plan=[replace(EVENT, steps=30)])
    open_run(ledger, "one", plan=[replace(EVENT, steps=30)])


def test_the_plan_of_a_killed_process_is_not_held(ledger: Ledger, path: Path) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit_for(40))
    child = in_process(
        """
        lease = ledger.open_run("meters", unit="user", run="one", plan=[EVENT, EVENT, EVENT])
        lease.reserve(EVENT)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert steps(ledger) == 10  # what it reserved stays charged
    open_run(ledger, "two", plan=[replace(EVENT, steps=30)])


# --- append-only, chained -------------------------------------------------------------------------


CHANGED = "seq, prev_hash, hash, dataset, unit, run, lease, kind, '{}', time"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET detail = '{}' WHERE seq = 3",
        "UPDATE entry SET seq = seq + 100",
        "DELETE FROM entry WHERE seq = 4",
        "DELETE FROM entry",
        "INSERT OR REPLACE INTO entry SELECT * FROM entry WHERE seq = 3",
        f"INSERT OR REPLACE INTO entry SELECT {CHANGED} FROM entry WHERE seq = (SELECT max(seq) FROM entry)",
        f"INSERT INTO entry SELECT {CHANGED.replace('seq', 'seq + 9')} FROM entry WHERE seq = 3",
        f"INSERT INTO entry SELECT {CHANGED.replace('seq', 'max(seq) + 1')} FROM entry",
    ],
)
def test_rows_are_neither_changed_nor_removed(ledger: Ledger, path: Path, statement: str) -> None:
    open_run(ledger).reserve(EVENT)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
        # The fault planted: without the triggers the statement goes through, and verify says so.
        for name in ("updated", "deleted"):
            connection.execute(f"DROP TRIGGER entry_is_not_{name}")
        connection.execute("DROP TRIGGER entry_is_appended")
        connection.execute(statement)
        connection.commit()
    with pytest.raises(LedgerCorrupt, match="triggers"):
        ledger.verify()


def test_a_changed_row_is_named_even_where_the_triggers_are_back(ledger: Ledger, path: Path) -> None:
    lease = open_run(ledger)
    for _ in range(3):
        last = lease.reserve(EVENT)
    lease.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        name = "entry_is_not_updated"
        connection.execute(f"DROP TRIGGER {name}")
        connection.execute(
            "UPDATE entry SET detail = replace(detail, '\"steps\":10', '\"steps\":1') WHERE seq = ?",
            [last.seq - 1],
        )
        connection.execute(SCHEMA[name])
        connection.commit()
    with pytest.raises(LedgerCorrupt) as caught:
        ledger.verify()
    assert caught.value.seq == last.seq - 1
    for use in (lambda: open_run(ledger), lambda: ledger.epsilon(DATA, unit=UNIT)):
        with pytest.raises(LedgerCorrupt):
            use()


@pytest.mark.parametrize("fault", ["transplanted", "removed"])
def test_a_row_of_another_ledger_or_a_gap_is_named(
    ledger: Ledger, path: Path, tmp_path: Path, fault: str
) -> None:
    other = Ledger(tmp_path / "other.sqlite")
    other.register(DATA, unit=UNIT, delta=DELTA)
    for each in (ledger, other):
        with open_run(each) as lease:
            for _ in range(3):
                lease.reserve(EVENT)
    seq = 2  # the registration: alike in both but for its time
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER entry_is_not_deleted")
        connection.execute("DROP TRIGGER entry_is_appended")
        connection.execute("DELETE FROM entry WHERE seq = ?", [seq])
        if fault == "transplanted":  # sound by itself: its own hash fits its content
            connection.execute("ATTACH ? AS other", [str(other.path)])
            connection.execute("INSERT INTO main.entry SELECT * FROM other.entry WHERE seq = ?", [seq])
        for name in ("entry_is_not_deleted", "entry_is_appended"):
            connection.execute(SCHEMA[name])
        connection.commit()
    anchor(path).write_text("")  # so that only the chain can tell
    with pytest.raises(LedgerCorrupt) as caught:
        ledger.verify()
    assert caught.value.seq == seq


def test_a_flipped_byte_in_any_row_is_found_and_named(ledger: Ledger, path: Path) -> None:
    lease = open_run(ledger)
    for _ in range(5):
        lease.reserve(EVENT)
    lease.close()
    entries = ledger.entries()
    sound = path.read_bytes()
    for entry in entries:
        where = sound.find(entry.time.encode())
        assert where > 0
        path.write_bytes(flip(sound, where + 3))
        with pytest.raises(LedgerCorrupt) as caught:
            ledger.verify()
        assert caught.value.seq == entry.seq
        with pytest.raises(LedgerCorrupt):
            open_run(ledger)
    path.write_bytes(sound)
    assert ledger.verify() == entries[-1].reference


@pytest.mark.parametrize("column", COLUMNS)
def test_any_column_that_is_edited_is_found(ledger: Ledger, path: Path, column: str) -> None:
    """With values that are right elsewhere in the ledger, so that nothing but the hash can tell."""
    for unit in (UNIT, "window"):
        for dataset in (DATA, "others"):
            ledger.register(dataset, unit=unit, delta=DELTA)
    one, two = open_run(ledger, "one"), ledger.open_run("others", unit="window", run="two")
    target, other = one.reserve(EVENT), two.reserve(EVENT, kind="audit", note="x")
    value = {"seq": other.seq + 1, "detail": json.dumps(other.detail)}.get(column) or vars(other)[column]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER entry_is_not_updated")
        connection.execute(f"UPDATE entry SET {column} = ? WHERE seq = ?", [value, target.seq])
        connection.execute(SCHEMA["entry_is_not_updated"])
        connection.commit()
    anchor(path).write_text("")  # so that only the chain can tell
    with pytest.raises(LedgerCorrupt) as caught:
        ledger.verify()
    assert caught.value.seq == target.seq


def flip(content: bytes, where: int, bit: int = 1) -> bytes:
    return content[:where] + bytes([content[where] ^ bit]) + content[where + 1 :]


def test_no_flipped_byte_anywhere_changes_what_is_reported(ledger: Ledger, path: Path) -> None:
    lease = open_run(ledger)
    for _ in range(12):
        lease.reserve(EVENT)
    lease.close()
    sound, expected = path.read_bytes(), ledger.entries()
    rng = random.Random(SEED)
    places = [*range(100), *rng.sample(range(100, len(sound)), 400)]
    found = 0
    for where in places:
        path.write_bytes(flip(sound, where, 1 << rng.randrange(8)))
        try:
            assert ledger.entries() == expected  # a byte that says nothing: padding, change counters
        except LedgerError:
            found += 1
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
    assert found > 100


def test_a_row_that_can_not_be_accounted_for_is_refused(ledger: Ledger) -> None:
    with ledger._appending() as (_, append):
        append((DATA, UNIT), kind="register", detail={"relation": "add_or_remove_one", "delta": DELTA})
    lease = open_run(ledger)
    unknown = {"event": {"type": "TreeEvent", "depth": 3}, "note": ""}
    with pytest.raises(ValueError, match="TreeEvent"):
        lease._append("reserve", unknown)
    # Written by a newer version, which knows the type: the row itself is sound.
    original = Replay.apply
    try:
        Replay.apply = lambda self, entry: (  # type: ignore[method-assign]
            None if entry.kind == "reserve" else original(self, entry)
        )
        lease._append("reserve", unknown)
    finally:
        Replay.apply = original  # type: ignore[method-assign]
    with pytest.raises(LedgerCorrupt, match="newer version"):
        ledger.epsilon(DATA, unit=UNIT)


# --- lost, older, foreign files -------------------------------------------------------------------


def test_a_checkpoint_is_refused_where_the_ledger_lacks_its_entry(ledger: Ledger, tmp_path: Path) -> None:
    entry = open_run(ledger).reserve(EVENT)
    open_run(ledger, parent=entry.reference)
    fresh = Ledger(tmp_path / "fresh" / "ledger.sqlite")
    fresh.register(DATA, unit=UNIT, delta=DELTA)
    for parent in (entry.reference, (1, "0" * 64), (10**6, entry.hash)):
        with pytest.raises(LedgerError, match="checkpoint was written when the ledger had entry"):
            open_run(fresh, parent=parent)
    assert fresh.entries()[-1].kind == "register"


def snapshot(path: Path, to: Path, *, with_anchor: bool) -> None:
    to.mkdir(exist_ok=True)
    for file in path.parent.iterdir():
        if with_anchor or not file.name.endswith("-anchor"):
            shutil.copy(file, to / file.name)


def restore(path: Path, source: Path) -> None:
    for rest in ("", "-wal", "-shm"):
        path.with_name(path.name + rest).unlink(missing_ok=True)
    for file in source.iterdir():
        shutil.copy(file, path.parent / file.name)


def test_an_older_ledger_put_back_is_found_by_the_anchor(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    open_run(ledger, "one").close()
    snapshot(path, tmp_path / "backup", with_anchor=False)
    with open_run(ledger, "two") as lease:
        lease.reserve(EVENT)
    restore(path, tmp_path / "backup")
    for use in (ledger.verify, lambda: open_run(ledger), lambda: ledger.epsilon(DATA, unit=UNIT)):
        with pytest.raises(LedgerCorrupt, match="older copy was put back"):
            use()
    anchor(path).write_text("")  # the guard taken away: the loss goes unseen
    assert ledger.epsilon(DATA, unit=UNIT) == 0


def test_an_older_ledger_put_back_with_its_anchor_is_found_by_the_checkpoint(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    open_run(ledger, "one").close()
    snapshot(path, tmp_path / "backup", with_anchor=True)
    with open_run(ledger, "two") as lease:
        parent = lease.reserve(EVENT).reference
    restore(path, tmp_path / "backup")
    ledger.verify()
    with pytest.raises(LedgerError, match="does not hold it"):
        open_run(ledger, parent=parent)


@pytest.mark.parametrize("keep", [0, 32, 0.5, 0.9, -1])
def test_a_truncated_write_ahead_log_is_found(
    ledger: Ledger, path: Path, tmp_path: Path, keep: float
) -> None:
    lease = open_run(ledger)
    for _ in range(10):
        lease.reserve(EVENT)
    # As a crash leaves it: the log is not folded into the database yet.
    snapshot(path, tmp_path / "crashed", with_anchor=True)
    copy = tmp_path / "crashed" / path.name
    wal = copy.with_name(copy.name + "-wal")
    content = wal.read_bytes()
    length = int(keep * len(content)) if 0 < keep < 1 else int(keep)
    wal.write_bytes(content[:length])
    copy.with_name(copy.name + "-shm").unlink()
    with pytest.raises(LedgerCorrupt):
        Ledger(copy).verify()
    with pytest.raises(LedgerCorrupt):
        open_run(Ledger(copy))
    assert steps(ledger) == 100


def test_a_flipped_byte_in_the_write_ahead_log_loses_nothing_unseen(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    lease = open_run(ledger)
    for _ in range(6):
        lease.reserve(EVENT)
    expected = ledger.entries()
    crashed = tmp_path / "crashed"
    snapshot(path, crashed, with_anchor=True)
    content = (crashed / f"{path.name}-wal").read_bytes()
    rng = random.Random(SEED)
    for where in [*range(32), *rng.sample(range(32, len(content)), 60)]:
        trial = tmp_path / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(crashed, trial)
        (trial / f"{path.name}-shm").unlink()
        (trial / f"{path.name}-wal").write_bytes(flip(content, where))
        with contextlib.suppress(LedgerError):
            assert Ledger(trial / path.name).entries() == expected


def test_a_deleted_ledger_is_missed(ledger: Ledger, path: Path) -> None:
    with open_run(ledger) as lease:
        parent = lease.reserve(EVENT).reference
    path.unlink()
    for use in (
        ledger.verify,
        lambda: ledger.register(DATA, unit=UNIT, delta=DELTA),
        lambda: open_run(ledger),
    ):
        with pytest.raises(LedgerCorrupt, match="is gone, but its anchor"):
            use()
    path.write_bytes(b"")
    with pytest.raises(LedgerCorrupt, match="was cut off"):
        ledger.register(DATA, unit=UNIT, delta=DELTA)
    shutil.rmtree(path.parent)
    with pytest.raises(LedgerMissing, match="There is no ledger"):
        open_run(ledger, parent=parent)
    ledger.register(DATA, unit=UNIT, delta=DELTA)
    with pytest.raises(LedgerError, match="does not hold it"):
        open_run(ledger, parent=parent)


def test_a_lost_anchor_is_missed_and_can_be_given_up(ledger: Ledger, path: Path) -> None:
    open_run(ledger).close()
    anchor(path).unlink()
    with pytest.raises(LedgerCorrupt, match="lost its anchor"):
        ledger.verify()
    anchor(path).touch()
    with open_run(ledger) as lease:
        lease.reserve(EVENT)
    ledger.verify()


@pytest.mark.parametrize("what", ["ledger deleted", "ledger replaced", "folder deleted", "anchor deleted"])
def test_files_that_go_away_under_a_running_process_stop_it(
    ledger: Ledger, path: Path, tmp_path: Path, what: str
) -> None:
    lease = open_run(ledger)
    lease.reserve(EVENT)
    if what == "ledger deleted":
        path.unlink()
    elif what == "ledger replaced":
        shutil.copy(path, tmp_path / "copy")
        (tmp_path / "copy").rename(path)
    elif what == "folder deleted":
        shutil.rmtree(path.parent)
    else:
        anchor(path).unlink()
    with pytest.raises(LedgerError):
        lease.reserve(EVENT)


def test_an_older_state_put_back_under_a_running_process_stops_it(ledger: Ledger, path: Path) -> None:
    lease = open_run(ledger)
    lease.reserve(EVENT)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER entry_is_not_deleted")
        connection.execute("DELETE FROM entry WHERE seq = ?", [lease.head[0]])
        connection.execute(SCHEMA["entry_is_not_deleted"])
        connection.commit()
    with pytest.raises(LedgerCorrupt, match="not there any more"):
        lease.reserve(EVENT)


@pytest.mark.parametrize("content", ["not a database at all, but quite a long text " * 30, "other"])
def test_a_foreign_file_is_refused(path: Path, content: str) -> None:
    path.parent.mkdir()
    if content == "other":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE other (x)")
            connection.commit()
    else:
        path.write_text(content)
    before = path.read_bytes()[100:]
    with pytest.raises(LedgerCorrupt, match=r"no ledger at all|no lightning-dp ledger"):
        Ledger(path).register(DATA, unit=UNIT, delta=DELTA)
    assert path.read_bytes()[100:] == before


def test_a_missing_ledger_is_said_to_be_missing(path: Path) -> None:
    ledger = Ledger(path)
    for use in (
        ledger.verify,
        ledger.head,
        lambda: open_run(ledger),
        lambda: ledger.epsilon(DATA, unit=UNIT),
    ):
        with pytest.raises(LedgerMissing, match="There is no ledger"):
            use()
    assert not path.parent.exists()


# --- disks and locks ------------------------------------------------------------------------------


def test_commits_are_synced_and_logged_ahead(ledger: Ledger) -> None:
    connection = open_run(ledger)._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_lock_that_is_not_released_is_an_error(ledger: Ledger, path: Path) -> None:
    lease = open_run(Ledger(path, lock_timeout=0.2))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"held its lock for more than 0.2 s.*no private row"):
            lease.reserve(EVENT)
        with pytest.raises(LedgerError, match="lock"):
            open_run(Ledger(path, lock_timeout=0.2))
    assert steps(ledger) == 0
    lease.reserve(EVENT)
    assert steps(ledger) == 10


def test_a_full_disk_is_an_error_and_loses_nothing(ledger: Ledger) -> None:
    lease = open_run(ledger)
    (pages,) = lease._connection.execute("PRAGMA page_count").fetchone()
    lease._connection.execute(f"PRAGMA max_page_count={pages + 1}")
    reserved = reserve_until_error(lease, match="no space left on its disk", note="x" * 500)
    assert steps(ledger) == reserved > 0
    ledger.verify()
    lease._connection.execute("PRAGMA max_page_count=100000")
    lease.reserve(EVENT)
    assert steps(ledger) == reserved + 10


def test_a_file_system_that_takes_no_more_is_an_error(ledger: Ledger, path: Path) -> None:
    lease = open_run(ledger)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    wal = path.with_name(path.name + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 9000, hard))
    try:
        reserved = reserve_until_error(lease, match="disk failed|no space|File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert steps(ledger) == reserved > 0
    ledger.verify()
    lease.reserve(EVENT)


def test_an_anchor_that_can_not_be_written_is_an_error_and_spoils_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = open_run(ledger)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
        with pytest.raises(LedgerError, match="No space left"):
            lease.reserve(EVENT)
    lease.reserve(EVENT)
    assert steps(ledger) == 20  # the refused one stays charged: too much, never too little
    ledger.verify()


FAILING_SYNC = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <stdlib.h>
    int fsync(int fd) { if (getenv("FAIL_SYNC")) { errno = EIO; return -1; }
        return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }
    int fdatasync(int fd) { if (getenv("FAIL_SYNC")) { errno = EIO; return -1; }
        return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler")
def test_a_failing_sync_is_an_error(
    ledger: Ledger, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sync.c").write_text(FAILING_SYNC)
    library = tmp_path / "sync.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "sync.c", "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    child = in_process(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        lease = ledger.open_run("meters", unit="user", run="run")
        lease.reserve(EVENT)
        libc.setenv(b"FAIL_SYNC", b"1", 1)
        try:
            lease.reserve(EVENT)
        except LedgerError as error:
            print(error, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    said, errors = child.communicate()
    assert "disk failed to read, write or sync" in said, errors
    assert steps(ledger) >= 10
    ledger.verify()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that any user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anything: become nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX only")
@pytest.mark.parametrize("what", ["folder", "file", "new"])
def test_a_read_only_place_is_an_error(shared_folder: Path, what: str) -> None:
    folder = shared_folder / "owner"
    ledger = Ledger(folder / "ledger.sqlite")
    folder.mkdir()
    if what != "new":
        ledger.register(DATA, unit=UNIT, delta=DELTA)
    for file in folder.iterdir():
        file.chmod(0o444 if what == "file" else 0o666)
    folder.chmod(0o777 if what == "file" else 0o555)
    try:
        with unprivileged(), pytest.raises(LedgerError, match=r"written|opened|denied") as caught:
            ledger.register(DATA, unit="window", delta=DELTA)
        assert "Traceback" not in str(caught.value)
        with unprivileged(), pytest.raises(LedgerError):
            open_run(ledger)
    finally:
        folder.chmod(0o755)
    if what != "new":
        assert ledger.accounts() == [(DATA, UNIT)]


def test_a_new_ledger_is_for_its_owner_only(ledger: Ledger, path: Path) -> None:
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {f.stat().st_mode & 0o777 for f in path.parent.iterdir()} == {0o600}


def test_where_the_ledger_is_when_nobody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_DP_LEDGER", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Ledger().path == (tmp_path / "data" / "lightning-dp" / "ledger.sqlite").resolve()
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_ledger_path().is_relative_to(tmp_path)
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "mine.sqlite"))
    assert Ledger().path == (tmp_path / "mine.sqlite").resolve()
    assert Ledger(tmp_path).path == (tmp_path / "ledger.sqlite").resolve()


# --- processes and threads ------------------------------------------------------------------------


def run_forked(action: Any) -> str:
    """What `action` raises in a fork, as text; the fork ends like any Python process."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(send, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(send)
    with os.fdopen(receive) as file:
        return file.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")
def test_a_fork_can_use_neither_the_lease_nor_its_file(ledger: Ledger, path: Path) -> None:
    lease = open_run(ledger)
    lease.reserve(EVENT)
    assert run_forked(lambda: lease.reserve(EVENT)).startswith(
        "LedgerError: This lease was opened by process"
    )
    assert run_forked(lease.close).startswith("LedgerError: This lease was opened by process")
    assert run_forked(lambda: Ledger(path).epsilon(DATA, unit=UNIT)).startswith(
        "LedgerError: The ledger" if path.exists() else ""
    )
    assert steps(ledger) == 10
    lease.reserve(EVENT)
    lease.close()
    assert run_forked(lambda: ledger.verify()) == "nothing"  # no connection was open at this fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")
def test_the_end_of_a_fork_does_not_fold_the_log_away(ledger: Ledger, path: Path) -> None:
    child = in_process(
        """
        lease = ledger.open_run("meters", unit="user", run="run")
        pid = os.fork()
        if pid == 0:
            sys.exit(0)  # finalises the interpreter, and with it every object that is not kept from it
        os.waitpid(pid, 0)
        lease.reserve(EVENT)
        assert os.path.exists(sys.argv[1] + "-wal")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors
    assert steps(ledger) == 10
    ledger.verify()


def test_a_ledger_can_be_sent_to_a_process_and_a_lease_can_not(ledger: Ledger) -> None:
    assert pickle.loads(pickle.dumps(ledger)).head() == ledger.head()
    with pytest.raises(LedgerError, match="one process"):
        pickle.dumps(open_run(ledger))


def test_threads_share_a_lease(ledger: Ledger) -> None:
    lease = open_run(ledger)
    threads = [threading.Thread(target=lambda: [lease.reserve(EVENT) for _ in range(10)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps(ledger) == 600
    ledger.verify()


def test_two_leases_see_each_other(ledger: Ledger) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit_for(10))
    one, two = open_run(ledger, "one"), open_run(ledger, "two")
    one.reserve(EVENT)
    with pytest.raises(BudgetExceeded):
        two.reserve(EVENT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")
@pytest.mark.parametrize("place", ["before the file", "before the first look inside"])
def test_another_process_may_begin_the_ledger_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The long crash run found this: no file or an empty one, then an anchor that remembers entries."""
    begun = []

    def read_anchor_once_it_has_begun(at: Path, *, tail: int | None = None) -> dict[int, str] | None:
        if not begun and (place == "before the file" or path.exists()):
            begun.append(place)
            with in_process(f"ledger.register({DATA!r}, unit={UNIT!r}, delta={DELTA})", path) as other:
                other.communicate()
            assert other.returncode == 0
        return read_anchor(at, tail=tail)

    monkeypatch.setattr(storage_module, "read_anchor", read_anchor_once_it_has_begun)
    mine = Ledger(path, lock_timeout=5)
    mine.register("mine", unit=UNIT, delta=DELTA)
    assert begun
    assert {dataset for dataset, _ in mine.accounts()} == {DATA, "mine"}
    mine.verify()


@pytest.mark.parametrize("how", ["plan", "reserve"])
def test_of_processes_that_race_for_the_last_of_a_budget_one_wins(ledger: Ledger, how: str) -> None:
    ledger.set_limit(DATA, unit=UNIT, limit_epsilon=limit_for(10))
    processes = multiprocessing.get_context("fork")  # sound here: no connection to this ledger is open
    start, said, over = processes.Barrier(3), processes.SimpleQueue(), processes.Event()

    def race(number: int) -> None:
        start.wait()
        try:
            lease = open_run(ledger, f"racer-{number}", plan=[EVENT] if how == "plan" else [])
            lease.reserve(EVENT)
            said.put("won")
        except BudgetExceeded:
            said.put("refused")
        over.wait()  # a running process holds its plan

    racers = [processes.Process(target=race, args=(number,)) for number in range(3)]
    for racer in racers:
        racer.start()
    assert sorted(said.get() for _ in racers) == ["refused", "refused", "won"]
    over.set()
    for racer in racers:
        racer.join()
    assert steps(ledger) == 10
    opened = sum(entry.kind == "open" for entry in ledger.entries())
    assert opened == (1 if how == "plan" else 3)  # with a plan the losers never got a lease
    ledger.verify()


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    ledger.register("images", unit="record", delta=1e-6, limit_epsilon=3)
    lease = open_run(ledger, "sweep-1")
    entry = lease.reserve(EVENT)
    lease.reserve(LaplaceEvent(noise_multiplier=8.0), kind="release", note="mean load")
    lease.override("BatchNorm is frozen")
    lease.close(steps_taken={entry.seq: 4})
    open_run(ledger, "sweep-2").reserve(EVENT)
    return ledger


def call(capsys: pytest.CaptureFixture[str], ledger: Ledger, *arguments: str) -> tuple[int, str, str]:
    code = main(["--ledger", str(ledger.path), *arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_list_shows_the_total_of_every_data_set(filled: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, filled, "list")
    assert code == 0
    line = next(line for line in out.splitlines() if line.strip().startswith("meters"))
    assert line.split()[1:3] == ["user", f"{filled.epsilon(DATA, unit=UNIT):.4g}"]
    code, out, _ = call(capsys, filled, "list", "--json")
    accounts = json.loads(out)["accounts"]
    assert [a["dataset"] for a in accounts] == ["meters", "images"]
    assert accounts[0]["epsilon"] == filled.epsilon(DATA, unit=UNIT)
    assert accounts[1]["limit_epsilon"] == 3


def test_show_shows_runs_releases_and_overrides(filled: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, filled, "show", "met")
    assert code == 0
    for text in ("sweep-1", "sweep-2", "mean load", "BatchNorm is frozen", "all 2 run(s) together"):
        assert text in out
    account = json.loads(call(capsys, filled, "show", DATA, "--json")[1])["accounts"][0]
    assert [run["steps"] for run in account["runs"]] == [4, 10]
    assert [run["clean_ends"] for run in account["runs"]] == [1, 0]
    assert account["epsilon"] > max(run["epsilon"] for run in account["runs"])


def test_set_limit_appends(filled: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, filled, "set-limit", "images", "--epsilon", "5", "--reason", "board")
    assert code == 0
    assert "3 → 5" in out
    entry = filled.entries("images")[-1]
    assert entry.kind == "limit"
    assert entry.detail == {"epsilon": 5.0, "reason": "board"}
    code, out, _ = call(capsys, filled, "set-limit", "images", "--epsilon", "none")
    assert filled.budget("images", unit="record").limit_epsilon is None


def test_allow_appends_and_show_has_the_reason(filled: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    filled.set_limit(DATA, unit=UNIT, limit_epsilon=9)
    code, out, _ = call(capsys, filled, "allow", DATA, "--finer", "window", "--reason", "the board said so")
    assert code == 0
    assert "per window are allowed beside the limit per user" in out
    filled.register(DATA, unit="window", delta=DELTA)
    assert "the board said so" in call(capsys, filled, "show", DATA, "--unit", UNIT)[1]
    code, _, said = call(capsys, filled, "allow", "images", "--finer", "user", "--reason", "no such order")
    assert code == 2
    assert "not finer than 'record'" in said


def test_export_holds_every_entry(filled: Ledger, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    exported = json.loads(call(capsys, filled, "export", "--json")[1])
    assert [e["hash"] for e in exported["entries"]] == [e.hash for e in filled.entries()]
    assert exported["head"] == list(filled.head())
    only = json.loads(call(capsys, filled, "export", "images", "--json")[1])
    assert {e["dataset"] for e in only["entries"]} == {"images"}
    lines = call(capsys, filled, "export")[1].splitlines()
    assert len(lines) == 1 + len(filled.entries())
    target = tmp_path / "ledger.csv"
    assert call(capsys, filled, "export", "--output", str(target))[0] == 0
    assert target.read_text().splitlines() == lines
    code, _, err = call(capsys, filled, "export", "--output", str(target))
    assert code == 2
    assert "File exists" in err


def test_verify_says_where_the_damage_is(
    filled: Ledger, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, filled, "verify")
    assert code == 0
    assert filled.head()[1] in out
    fourth = filled.entries()[3]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    path.write_bytes(flip(content, content.find(fourth.time.encode())))
    code, out, err = call(capsys, filled, "verify")
    assert (code, out) == (1, "")
    assert "from entry 4 on" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nope"], "no data set 'nope'"),
        (["show", DATA, "--unit", "window"], "with unit 'window'"),
        (["set-limit", DATA, "--epsilon", "-1"], "at least 0"),
        (["set-limit", DATA, "--epsilon", "much"], "neither a number nor 'none'"),
        (["set-limit", DATA], "--epsilon"),
        (["show"], "DATASET"),
        ([], "COMMAND"),
        (["refund", DATA], "invalid choice"),
        (["export", "--unit", "user"], "--unit needs a DATASET"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    filled: Ledger, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    head = filled.head()
    code, out, err = call(capsys, filled, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert filled.head() == head


def test_a_missing_ledger_is_a_mistake_and_help_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--ledger", str(tmp_path / "no.sqlite")]) == 2
    assert "There is no ledger" in capsys.readouterr().err
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "set-limit" in said
    assert "LIGHTNING_DP_LEDGER" in said
