"""SIGKILL, rollback, fork and race, in short; `benchmarks/crash.py` runs the same stories at length.

A witness file outside the ledger, synced before each touch of private data, counts what was touched.
"""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightning_dp.privacy.ledger import Ledger, LedgerMissing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crash.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crash", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


crash = load()


@pytest.fixture
def tmp_path(memory_folder: Path) -> Path:
    """Hundreds of synced commits: in memory they cost nothing."""
    return memory_folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The rows of a short run. SIGKILL spares the page cache, so memory is as good a disk as any."""
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("crash")
    report = tmp_path_factory.mktemp("report") / "crash.json"
    options = ["--trials", "4", "--broken-trials", "1", "--episodes", "12", "--reservations", "0"]
    # A process of its own: it forks, and pytest's plugins may have threads.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--json", str(report)],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {row["variant"]: row for row in json.loads(report.read_text())["rows"]}


def test_the_ledger_never_says_less_than_the_witness(rows: dict[str, dict[str, Any]]) -> None:
    row = rows[crash.SOUND]
    assert row["under_reports"] == 0
    assert row["chain_failures"] == 0
    assert row["unexpected_exits"] == 0
    assert row["epsilon_reported_over_true_min"] >= 1
    assert row["charged"] >= row["touched"] > 0
    # The stories did what they are told for.
    assert row["kills"] >= 25
    assert min(row["rollbacks"], row["forks"], row["clean_ends"]) > 0


def test_one_of_several_racing_processes_wins(rows: dict[str, dict[str, Any]]) -> None:
    assert rows[crash.SOUND]["races"] > 0
    assert rows[crash.SOUND]["race_violations"] == 0


@pytest.mark.parametrize("variant", [crash.RESERVE_LATE, crash.COUNTER])
def test_a_broken_trainer_is_caught(rows: dict[str, dict[str, Any]], variant: str) -> None:
    assert rows[variant]["trials_under_reported"] == rows[variant]["trials"] > 0


@pytest.mark.parametrize("name", crash.POINTS)
@pytest.mark.parametrize("visit", [1, 2])
def test_a_kill_at_a_named_point_loses_no_charge(tmp_path: Path, name: str, visit: int) -> None:
    if name.endswith("close"):
        visit = 1
    tally = crash.Tally(variant=crash.SOUND)
    story = crash.Story(tmp_path, random.Random(0), tally)
    job = crash.Job(run="a", num_steps=30, kill_at=(name, visit))
    assert crash.wait(crash.start(tmp_path, job)) == -signal.SIGKILL
    story.check()
    # Resume from the newest checkpoint, die there as well, then end cleanly.
    for kill_at in ((name, visit), None):
        checkpoints = sorted(tmp_path.glob("a-*.ckpt"))
        job = crash.Job(
            run="a", num_steps=60, kill_at=kill_at, checkpoint=checkpoints[-1] if checkpoints else None
        )
        code = crash.wait(crash.start(tmp_path, job))
        assert code == (-signal.SIGKILL if kill_at else crash.WON)
        story.check()
    assert tally.under_reports == tally.chain_failures == 0
    assert tally.checks == 3


def test_a_kill_before_the_commit_charges_nothing_and_after_it_everything(tmp_path: Path) -> None:
    def charged(name: str, visit: int) -> int:
        home = tmp_path / name
        home.mkdir()
        job = crash.Job(run="a", num_steps=30, reserve=10, kill_at=(name, visit))
        assert crash.wait(crash.start(home, job)) == -signal.SIGKILL
        story = crash.Story(home, random.Random(0), crash.Tally(variant=crash.SOUND))
        assert not story.witnessed()
        return int(story.reported(crash.DATASET, "a"))

    # Visits of these points: genesis and register, the lease, then the first reservation.
    assert charged("before commit", 4) == 0
    assert charged("after commit", 4) == 10


def test_a_process_killed_while_it_makes_the_ledger_leaves_none_or_a_sound_one(tmp_path: Path) -> None:
    for visit in (1, 2, 3):
        for name in ("before commit", "after commit", "after anchor"):
            home = tmp_path / f"{name}-{visit}"
            home.mkdir()
            assert crash.wait(crash.start(home, crash.Job(run="a", kill_at=(name, visit)))) < 0
            try:
                Ledger(home / "ledger.sqlite").verify()
            except LedgerMissing:
                assert (name, visit) == ("before commit", 1)
            job = crash.Job(run="a", num_steps=10)
            assert crash.wait(crash.start(home, job)) == crash.WON
            Ledger(home / "ledger.sqlite").verify()


def test_a_fresh_interpreter_killed_from_outside_loses_no_charge(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import crash; from pathlib import Path; "
        f"crash.train(Path({str(tmp_path)!r}), crash.Job(run='a', reserve=5))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        story = crash.Story(tmp_path, random.Random(0), crash.Tally(variant=crash.SOUND))
        while not story.witnessed().total() > 20:
            assert process.poll() is None
        process.kill()
    story.check()
    story.check_epsilon()
    assert story.tally.under_reports == story.tally.chain_failures == 0
    assert story.tally.ratios[0] >= 1


def test_the_result_page_says_what_its_json_says() -> None:
    results = SCRIPT.parents[1] / "docs" / "results"
    report = json.loads((results / "crash.json").read_text())
    page = (results / "crash.md").read_text()
    assert report["command"] in page
    variants = [row for row in report["rows"] if row["variant"] != "latency"]
    for label, key in (
        ("trials", "trials"),
        ("SIGKILLs", "kills"),
        ("rollbacks to an older checkpoint", "rollbacks"),
        ("forks of one checkpoint", "forks"),
        ("races for the last of a budget", "races"),
        ("steps witnessed", "touched"),
        ("steps charged", "charged"),
        ("**under-reports**", "under_reports"),
    ):
        line = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
        cells = [cell.strip(" *") for cell in line.split("|")[2:-1]]
        assert cells == [f"{row[key]:,}" for row in variants]
    for row in variants:
        figures = [row[f"epsilon_reported_over_true_{which}"] for which in ("min", "median", "max")]
        assert " / ".join(f"{figure:.3f}" for figure in figures) in page
    for row in report["rows"][len(variants) :]:
        figures = [row[f"reserve_ms_{which}"] for which in ("median", "p95", "max")]
        assert " / ".join(f"{figure:.2f}" for figure in figures) + " ms" in page
