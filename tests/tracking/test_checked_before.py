"""Many run folders are checked once; what changed since, and what the ledger says, is always looked at."""

import json
import os
from pathlib import Path

import pytest

from lightning_dp.privacy.accounting import GaussianEvent, epsilon_pld
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.tracking.account import Account, read_accounts
from lightning_dp.tracking.checked_before import CheckedBefore, Passed, key_of
from lightning_dp.tracking.results import read_results

EVENT = GaussianEvent(noise_multiplier=1.5, sampling_rate=0.1, steps=20)
DELTA = 1e-5
EPSILON = epsilon_pld([EVENT], DELTA)


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "ledger.sqlite"))


def written(folder: Path, **changes: object) -> Path:
    """A private run that was charged to the usual ledger."""
    report: dict[str, object] = {
        "epsilon": EPSILON,
        "epsilon_spent": EPSILON,
        "delta": DELTA,
        "unit": "user",
        "noise_multiplier": EVENT.noise_multiplier,
        "sampling_rate": EVENT.sampling_rate,
        "steps_charged": EVENT.steps,
        "num_steps": EVENT.steps,
        "run": folder.name,
    }
    ledger = Ledger()
    if not folder.exists():
        ledger.register("clinic", unit="user", delta=DELTA)
        with ledger.open_run("clinic", unit="user", run=folder.name, plan=[EVENT]) as lease:
            report |= dict(zip(("ledger_seq", "ledger_hash"), lease.reserve(EVENT).reference, strict=True))
        folder.mkdir(parents=True)
        results = {"method": folder.name, "dataset": "clinic", "epsilon": EPSILON, "metrics": {"test/mse": 1}}
        (folder / "results.json").write_text(json.dumps(results))
    else:
        report = json.loads((folder / "privacy.json").read_text())
    (folder / "privacy.json").write_text(json.dumps(report | changes))
    (folder / "config.yaml").write_text(f"privacy:\n  delta: {DELTA}\n")
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    found = [written(tmp_path / "runs" / name) for name in ("a", "b")]
    assert all(isinstance(account, Account) for account in read_accounts(found))
    return found


def problem(account: Account | Exception) -> str:
    return str(account) if isinstance(account, Exception) else ""


def test_a_folder_that_passed_is_known_again_with_the_same_account(runs, tmp_path):
    before = CheckedBefore()
    known = [before.find(key_of(run, report=(run / "privacy.json").read_bytes())) for run in runs]
    assert known == [Passed(checks=known[0].checks, ledger=None)] * 2
    again = read_accounts(runs)
    assert [account.checks["ledger"] for account in again] == ["agrees", "agrees"]
    new = read_accounts(runs, before=CheckedBefore(tmp_path / "empty"))
    assert [(one.report, one.checks) for one in again] == [(one.report, one.checks) for one in new]


@pytest.mark.parametrize(
    "changes", [{"epsilon_spent": EPSILON / 2}, {"noise_multiplier": 1.0}, {"delta": 1e-3}]
)
def test_a_report_that_was_edited_is_checked_again(runs, changes):
    written(runs[0], **changes)
    assert [bool(problem(account)) for account in read_accounts(runs)] == [True, False]


def test_a_config_and_a_checkpoint_that_changed_are_checked_again(runs):
    (runs[0] / "config.yaml").write_text("privacy:\n  delta: 1.0e-3\n")
    (runs[1] / "checkpoints").mkdir()
    (runs[1] / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    first, second = read_accounts(runs)
    assert "config.yaml says 0.001" in problem(first)
    assert "last.ckpt" in problem(second)


def test_the_ledger_is_asked_each_time(runs):
    with Ledger().open_run("clinic", unit="user", run="a", plan=[EVENT]) as lease:
        lease.reserve(EVENT)
    first, second = read_accounts(runs)
    assert "what the ledger was charged for this run" in problem(first)
    assert isinstance(second, Account)


def test_a_damaged_file_leaves_the_rest_and_is_named(runs):
    (runs[0] / "privacy.json").write_text('{"epsilon_spent": ')
    named: list[str] = []
    assert [result.method for result in read_results(runs, on_damaged=named.append)] == ["b"]
    assert len(named) == 1
    assert "privacy.json is damaged" in named[0]


@pytest.mark.parametrize(
    "content", ["", "[1", "[]", '{"k": 1}', '{"k": [{"mechanisms": 3}, null]}', '{"k": [{}, 1]}']
)
def test_a_damaged_or_foreign_list_is_taken_for_empty_and_written_anew(runs, content):
    path = CheckedBefore()._path
    whole = path.read_text()
    path.write_text(content)
    assert all(isinstance(account, Account) for account in read_accounts(runs))
    assert json.loads(path.read_text()) == json.loads(whole)


@pytest.mark.parametrize("mode", [0o600, 0o620, 0o602])
def test_what_others_may_write_vouches_for_nothing(runs, mode):
    """A list that vouches for a forged report: believed only from where nobody else could have put it."""
    Path(os.environ["LIGHTNING_DP_LEDGER"]).unlink()  # which would not believe it
    written(runs[0], epsilon_spent=0.1)
    forged = CheckedBefore()
    forged.keep(
        key_of(runs[0], report=(runs[0] / "privacy.json").read_bytes()),
        Passed(checks={"mechanisms": "agrees"}, ledger=None),
    )
    forged.save()
    forged._path.chmod(mode)
    assert isinstance(read_accounts(runs)[0], Account) == (mode == 0o600)


def test_a_cache_that_cannot_be_written_costs_time_only(runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert all(isinstance(account, Account) for account in read_accounts(runs))
