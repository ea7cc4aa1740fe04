"""What a ledger proves of itself: signatures, snapshots, and histories compared with what others carry."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_dp.commands.ledger import main
from lightning_dp.privacy.accounting import GaussianEvent
from lightning_dp.privacy.ledger import (
    Evidence,
    Ledger,
    LedgerCorrupt,
    LedgerError,
    storage as storage_module,
)
from lightning_dp.privacy.ledger.anchor import _anchor_line, anchor_path
from lightning_dp.privacy.ledger.keys import head_message, signing_key
from lightning_dp.privacy.ledger.rows import COLUMNS, SCHEMA, SIGNATURES, hash_row
from lightning_dp.privacy.ledger.signed_report import ReportChanged, signer_of, with_signature
from lightning_dp.privacy.ledger.snapshot import snapshot_path

EVENT = GaussianEvent(noise_multiplier=2.0, sampling_rate=0.05, steps=10)
ACCOUNT: dict[str, Any] = {"unit": "user"}


@pytest.fixture
def path(memory_folder: Path) -> Path:
    return memory_folder / "owner" / "ledger.sqlite"


def charge(path: Path, run: str, times: int = 2) -> dict[str, Any]:
    """A run's charges; what its report would carry of the ledger."""
    ledger = Ledger(path)
    ledger.register("meters", **ACCOUNT, delta=1e-5)
    with ledger.open_run("meters", **ACCOUNT, run=run) as lease:
        for _ in range(times):
            lease.reserve(EVENT)
        seq, digest = lease.head
        return {"run": run, "ledger_seq": seq, "ledger_hash": digest, "ledger_proof": lease.proof}


@pytest.fixture
def runs(path: Path) -> Path:
    """Folders of three runs, with reports that carry what the ledger was."""
    folder = path.parents[1] / "runs"
    for run in ("a", "b", "c"):
        (folder / run).mkdir(parents=True)
        (folder / run / "privacy.json").write_text(json.dumps(charge(path, run)))
    return folder


@contextlib.contextmanager
def unguarded(path: Path) -> Any:
    """The file without its triggers, which are back afterwards."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        objects = {
            name: sql for name, sql in (SCHEMA | SIGNATURES).items() if sql.startswith("CREATE TRIGGER")
        }
        for name in objects:
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        yield connection
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        for name, sql in objects.items():
            if name.split("_is_")[0] in tables:
                connection.execute(sql)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def rewrite(
    path: Path, edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], *, sign: bool = True
) -> None:
    """All rows written anew with hashes, anchor and, with the key, signatures that fit."""
    key = signing_key(path, create=False)
    assert key is not None
    with unguarded(path) as connection:
        rows = [
            dict(zip(COLUMNS, row, strict=True))
            for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM entry ORDER BY seq")
        ]
        rows, before = edit(rows), "0" * 64
        for seq, row in enumerate(rows, start=1):
            row |= {"seq": seq, "prev_hash": before}
            before = row["hash"] = hash_row(row)
        connection.execute("DELETE FROM entry")
        connection.execute("DELETE FROM signature")
        for row in rows:
            connection.execute(
                "INSERT INTO entry VALUES (?,?,?,?,?,?,?,?,?,?)", [row[name] for name in COLUMNS]
            )
            if sign:
                signature = key.sign(head_message(row["seq"], row["hash"]))
                connection.execute(
                    "INSERT INTO signature VALUES (?, ?, ?)", [row["seq"], key.public, signature]
                )
    anchor_path(path).write_bytes(b"".join(_anchor_line(row["seq"], row["hash"]) for row in rows))


def more_noise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        row | {"detail": row["detail"].replace('"noise_multiplier":2.0', '"noise_multiplier":9.0')}
        for row in rows
    ]


def without_b(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["run"] != "b"]


def cut(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[:-3]


def empty(path: Path) -> None:
    for file in path.parent.glob("ledger.sqlite*"):
        if not file.name.endswith("-key"):
            file.unlink()
    Ledger(path).register("meters", **ACCOUNT, delta=1e-5)


def call(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> tuple[int, str]:
    code = main(["--ledger", str(path), *arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


# --- signatures -----------------------------------------------------------------------------------


def test_every_transaction_signs_the_end_and_the_key_is_its_owners(path: Path, runs: Path) -> None:
    found = Ledger(path).examine().examination
    assert found is not None
    key = path.with_name("ledger.sqlite-key")
    before = key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600
    assert list(found.keys.values()) == [1]
    assert found.signatures == found.anchored == 14  # genesis, register, and each run's four
    charge(path, "d")
    assert key.read_bytes() == before


def test_who_has_no_key_can_neither_append_nor_rewrite(path: Path, runs: Path) -> None:
    rewrite(path, more_noise, sign=False)
    for use in (Ledger(path).verify, lambda: charge(path, "d")):
        with pytest.raises(LedgerCorrupt, match="none of the ledger's keys has signed it"):
            use()


def test_without_its_signatures_a_signed_ledger_is_refused(path: Path, runs: Path) -> None:
    with unguarded(path) as connection:
        connection.execute("DROP TABLE signature")
    with pytest.raises(LedgerCorrupt, match="the signatures are gone"):
        Ledger(path).verify()


def test_an_old_signature_that_is_spoilt_is_named_by_verify(path: Path, runs: Path) -> None:
    with unguarded(path) as connection:
        connection.execute("UPDATE signature SET signature = replace(signature, '0', '1') WHERE seq = 4")
    with pytest.raises(LedgerCorrupt, match="the signature at entry 4 does not fit"):
        Ledger(path).verify()


def test_a_second_key_enters_the_chain(path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_LEDGER_KEY", str(path.parent / "mine"))
    charge(path, "d")
    found = Ledger(path).examine().examination
    assert found is not None
    assert len(found.keys) == 2
    assert found.own_key == list(found.keys)[1]
    (path.parent / "mine").write_bytes(b"short")
    with pytest.raises(LedgerError, match="and not the 32 of a key"):
        charge(path, "e")


def test_an_older_ledger_is_continued_with_signatures(
    path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genesis = {"format": 1, "nonce": "0"}

    def unsigned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [rows[0] | {"detail": json.dumps(genesis)}, *rows[1:]]

    rewrite(path, unsigned, sign=False)
    with unguarded(path) as connection:
        connection.execute("DROP TABLE signature")
        connection.execute("PRAGMA user_version=1")
    assert "No entry is signed" in call(capsys, path, "verify")[1]
    end = Ledger(path).head()[0]
    charge(path, "d")
    code, said = call(capsys, path, "verify")
    assert code == 0
    assert f"signed from entry {end + 2} on, and the {end + 1} before it" in said


def test_the_anchor_says_how_much_it_has_seen(
    path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anchor_path(path).write_text("")
    code, said = call(capsys, path, "verify")
    assert code == 0
    assert "The anchor holds 0 of 14 entries: the others could have been cut off" in said
    assert "compared with nothing outside" in said


# --- what others carry ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda path: rewrite(path, more_noise), "was rewritten"),
        (lambda path: rewrite(path, without_b), "the ledger knows no such run: it was dropped"),
        (lambda path: rewrite(path, cut), "and it ends at 11: it was cut"),
        (empty, "another ledger, or was rewritten or emptied and begun anew"),
        (lambda path: shutil.rmtree(path.parent), "it was emptied, moved or deleted"),
    ],
)
def test_a_history_that_was_changed_with_the_key_is_named(
    path: Path, runs: Path, capsys: pytest.CaptureFixture[str], tamper: Callable[[Path], None], said: str
) -> None:
    assert call(capsys, path, "verify", "--against", str(runs))[0] == 0
    tamper(path)
    if path.exists():
        assert call(capsys, path, "verify")[0] == 0  # by itself nothing can tell
    code, text = call(capsys, path, "verify", "--against", str(runs))
    assert code == 1
    assert said in text


def test_a_report_that_was_changed_is_no_evidence(path: Path, runs: Path) -> None:
    report = json.loads((runs / "a" / "privacy.json").read_text())
    report["ledger_proof"]["seq"] += 1
    (finding,) = Ledger(path).examine(Evidence.of_account(report, where="a")).findings
    assert "was changed after it was written" in finding


def test_heads_are_logged_in_a_second_place(
    path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = path.parents[1] / "elsewhere"
    place.mkdir()
    git = ["git", "-C", str(place)]
    subprocess.run([*git, "init", "-q"], check=True)
    for name, value in (("user.name", "n"), ("user.email", "e@example.org")):
        subprocess.run([*git, "config", name, value], check=True)
    assert call(capsys, path, "countersign", "--to", str(place))[0] == 0
    charge(path, "d")
    assert call(capsys, path, "countersign", "--to", str(place))[0] == 0
    log = subprocess.run([*git, "log", "--oneline"], check=True, capture_output=True, text=True).stdout
    assert len(log.splitlines()) == 2
    assert call(capsys, path, "verify", "--log", str(place))[0] == 0
    rewrite(path, without_b)
    for arguments in (["verify", "--log", str(place)], ["countersign", "--to", str(place)]):
        code, said = call(capsys, path, *arguments)
        assert code == 1
        assert "was rewritten" in said
    lines = (place / "ledger-heads.jsonl").read_text().splitlines()
    (place / "ledger-heads.jsonl").write_text(lines[1] + "\n")
    assert "does not follow" in call(capsys, path, "verify", "--log", str(place))[1]


# --- snapshots ------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(storage_module, "EVERY", 5)
    Ledger(path).accounts()
    key = signing_key(path, create=False)
    assert key is not None
    return snapshot_path(path, key=key)


def test_a_start_reads_what_follows_the_snapshot_and_says_the_same(path: Path, snapshot: Path) -> None:
    full = Ledger(path)._file.read_all()
    quick = Ledger(path).replay()
    assert (quick.base, quick.reference) == (14, full.reference)
    assert (quick.accounts, quick.leases, quick.keys) == (full.accounts, full.leases, full.keys)
    for base in (14, 18):
        carried = charge(path, f"after {base}")
        replay = Ledger(path).replay()
        assert replay.base >= base
        assert Ledger(path).contains(carried["ledger_seq"], carried["ledger_hash"])
        assert Ledger(path).contains(2, full.hashes[2])
        assert not Ledger(path).contains(2, "0" * 64)
    assert len(Ledger(path).events("meters", **ACCOUNT, run="b")) == 2
    assert sum(len(events) for events in Ledger(path).events_by_run("meters", **ACCOUNT).values()) == 10
    assert Ledger(path).verify() == Ledger(path).head()


def test_a_lease_closes_what_it_reserved_before_a_snapshot(
    path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Ledger(path).open_run("meters", **ACCOUNT, run="open")
    entry = lease.reserve(EVENT)
    monkeypatch.setattr(storage_module, "EVERY", 5)
    Ledger(path).accounts()  # writes a snapshot that ends after the reservation
    lease._replay.stale = True  # as after a refusal: it is read again, from the snapshot on
    lease.close(steps_taken={entry.seq: 4})
    assert Ledger(path).events("meters", **ACCOUNT, run="open")[0].steps == 4  # type: ignore[union-attr]
    Ledger(path).verify()


@pytest.mark.parametrize("spoil", ["a byte of it", "its signature", "by another key", "cut off"])
def test_a_snapshot_that_nobody_vouches_for_is_not_read(path: Path, snapshot: Path, spoil: str) -> None:
    first, _, state = snapshot.read_text().partition("\n")
    header = json.loads(first)
    lie = state.replace('"noise_multiplier":2.0', '"noise_multiplier":9.0')
    assert lie != state
    if spoil == "a byte of it":
        snapshot.write_text(first + "\n" + lie)
    elif spoil == "its signature":
        header["signature"] = "00" * 64
        snapshot.write_text(json.dumps(header) + "\n" + state)
    elif spoil == "by another key":
        key = signing_key(path.with_name("other"), create=True)
        assert key is not None
        header |= {"public_key": key.public}
        snapshot.write_text(json.dumps(header) + "\n" + lie)
    else:
        snapshot.write_text(first)
    epsilon = Ledger(path).epsilon("meters", **ACCOUNT)
    assert Ledger(path).replay().base in (0, 14)
    snapshot.unlink(missing_ok=True)
    assert Ledger(path).epsilon("meters", **ACCOUNT) == epsilon


@pytest.mark.parametrize("edit", [more_noise, without_b, cut])
def test_a_ledger_that_lacks_what_its_snapshot_ends_at_is_refused(
    path: Path, snapshot: Path, edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    rewrite(path, edit)
    for use in (lambda: charge(path, "d"), Ledger(path).accounts, Ledger(path).verify):
        with pytest.raises(LedgerCorrupt, match="snapshot"):
            use()


def test_verify_folds_what_a_snapshot_says_anew(
    path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault planted: a snapshot signed with the right key that says less than its entries."""
    from lightning_dp.privacy.ledger import snapshot as module

    said = module.state_of
    monkeypatch.setattr(module, "state_of", lambda replay: said(replay).replace('"},60]', '"},6]'))
    key = signing_key(path, create=False)
    assert key is not None
    module.write_snapshot(path, Ledger(path)._file.read_all(), key=key)
    monkeypatch.undo()
    with pytest.raises(LedgerCorrupt, match="does not say what its entries say"):
        Ledger(path).verify()


def test_a_row_that_was_taken_out_below_a_snapshot_is_found_where_it_is_asked_for(
    path: Path, snapshot: Path
) -> None:
    with unguarded(path) as connection:
        connection.execute("DELETE FROM entry WHERE seq = 5")
    anchor_path(path).write_text("")
    assert Ledger(path).accounts() == [("meters", "user")]  # what a start reads; the totals are right
    for use in (lambda: Ledger(path).events("meters", **ACCOUNT, run="a"), Ledger(path).verify):
        with pytest.raises(LedgerCorrupt):
            use()


def test_four_writers_at_once_all_sign_and_none_is_lost(path: Path, runs: Path) -> None:
    threads = [threading.Thread(target=charge, args=(path, f"writer {n}", 5)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(path)
    assert sum(len(events) for events in ledger.events_by_run("meters", **ACCOUNT).values()) == 6 + 20
    found = ledger.examine().examination
    assert found is not None
    assert found.signatures == found.head[0]


# --- reports --------------------------------------------------------------------------------------


def test_any_changed_byte_of_a_signed_report_is_found(path: Path, runs: Path) -> None:
    key = signing_key(path, create=False)
    assert key is not None
    report = with_signature(
        {"epsilon_spent": 3.5, "limit": float("inf"), "units": {"user": [1, 2.5]}}, key=key
    )
    assert signer_of(report) == key.public
    text = json.dumps(report)
    for where in range(len(text)):
        changed = text[:where] + chr(ord(text[where]) ^ 1) + text[where + 1 :]
        try:
            again = json.loads(changed)
        except ValueError:
            continue
        if "signature" in again and again != report:
            with pytest.raises(ReportChanged):
                signer_of(again)


def test_who_may_not_read_the_key_reads_the_ledger_and_signs_with_another(
    path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = path.with_name("ledger.sqlite-key")
    key.write_bytes(b"of somebody else, and no key here")
    assert Ledger(path).accounts() == [("meters", "user")]
    with pytest.raises(LedgerError, match="put back the one that was there"):
        charge(path, "d")
    monkeypatch.setenv("LIGHTNING_DP_LEDGER_KEY", str(path.parent / "mine"))
    charge(path, "d")
    Ledger(path).verify()
