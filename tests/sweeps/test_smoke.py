"""sweeps/smoke.yaml from end to end: by the unmodified `wandb sweep` and `wandb agent`, and with no server.

The server is the stand-in of tests/tracking; everything else is what a user has.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from wandb_server import RecordedRun, RecordedSweep, WandbServer

from lightning_dp.privacy.ledger import Ledger

ROOT = Path(__file__).parents[2]
KEY = "0123456789" * 4
BIN = Path(sys.executable).parent
METHODS = {"conf/model/dit_vanilla.yaml": "vanilla", "conf/model/dit_dp_aware.yaml": "DP-aware"}
TIMEOUT = 900  # seconds; a busy machine takes long over four fits
GRID = set(itertools.product(METHODS, (0, 1)))


def furnish(place: Path) -> Path:
    """Where users stand: their files are beside them, and runs/ will be."""
    for name in ("conf", "sweeps"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Of the whole sweep, by agent and without."""
    return furnish(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture
def own_place(tmp_path) -> Path:
    """Of one test: every stand-in calls its first sweep the same."""
    return furnish(tmp_path)


def environment(place: Path, *, ledger: str, server: WandbServer | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    kept.pop("NETRC", None)
    kept |= {
        "HOME": str(place),
        "PATH": f"{BIN}:{os.environ['PATH']}",  # an agent calls its interpreter `python`
        "LIGHTNING_DP_LEDGER": str(place / ledger),
        "WANDB_ERROR_REPORTING": "false",
    }
    if server is not None:
        kept |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    return kept


def make_sweep(place: Path, file: str, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [BIN / "wandb", "sweep", file], cwd=place, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Violation" not in done.stderr


@contextlib.contextmanager
def agent(place: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`wandb agent` on the server's only sweep; nothing of it outlives the block."""
    said = (place / "agent.txt").open("w+")
    with subprocess.Popen(
        [BIN / "wandb", "agent", "tester/lightning_dp/sweep0"],
        cwd=place,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=said,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGTERM)
                process.wait()
            said.seek(0)
            print(said.read())


def changed_smoke(place: Path, name: str, *, parameters: dict, command: list[str]) -> str:
    """The smoke sweep with other parameters and more options, for what it does not have."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "smoke.yaml").read_text())
    sweep["parameters"] |= parameters
    sweep["command"] += command
    (place / name).write_text(yaml.safe_dump(sweep))
    return name


@pytest.fixture(scope="module")
def by_agent(place) -> tuple[RecordedSweep, dict[str, RecordedRun]]:
    """What the server got of the whole sweep."""
    with WandbServer(key=KEY) as server:
        variables = environment(place, ledger="agent.sqlite", server=server)
        make_sweep(place, "sweeps/smoke.yaml", variables)
        with agent(place, variables) as process:
            assert process.wait(timeout=TIMEOUT) == 0
    assert server.unknown == []
    return server.sweeps["sweep0"], server.runs


def test_an_agent_runs_every_point_once_in_one_run_each(by_agent):
    sweep, runs = by_agent
    points = [(point["config"], point["seed_everything"]) for point in sweep.given.values()]
    assert set(points) == GRID
    assert len(points) == len(GRID)
    assert set(runs) == set(sweep.given)
    for name, run in runs.items():
        point = sweep.given[name]
        assert run.sweep == "sweep0"
        assert run.exit_code == 0, name
        assert run.config["method"] == METHODS[point["config"]]
        assert run.config["seed"] == run.config["seed_everything"] == point["seed_everything"]
        assert run.config["task"]
        assert run.config["privacy"]["target_epsilon"] is None
        assert run.config["privacy"]["noise_multiplier"] == 1


def test_what_a_run_has_at_the_server_is_what_its_folder_has(by_agent, place):
    for name, run in by_agent[1].items():
        folder = place / "runs" / "sweep-sweep0" / name
        results = json.loads((folder / "results.json").read_text())
        report = json.loads((folder / "privacy.json").read_text())
        assert [row["privacy/steps"] for row in run.history if "privacy/steps" in row] == [1, 2, 3, 4]
        assert run.summary["test/mse"] == pytest.approx(results["metrics"]["test/mse"])
        assert (
            run.summary["epsilon"] == run.config["epsilon"] == results["epsilon"] == report["epsilon_spent"]
        )
        assert run.summary["epsilon_of_user"] == report["epsilon_of_unit"]["user"]
        assert run.summary["ledger_hash"] == report["ledger_hash"]
        figure = (folder / "plots" / "forecast_fan.png").read_bytes()
        assert figure in run.files.values()  # households that nobody lives in may be shown
        assert not any("nonprivate/" in key for row in run.history for key in row)


def test_without_a_server_the_grid_and_the_results_are_the_same(by_agent, place):
    """Killed in the middle and given again: the rest is run, nothing twice, and the ledger says so."""
    variables = environment(place, ledger="here.sqlite") | {"WANDB_MODE": "disabled"}
    command = [sys.executable, "-m", "lightning_dp", "sweep", "run", "sweeps/smoke.yaml", "--out=runs/here"]
    trials = place / "runs" / "here" / "trials"
    first = subprocess.Popen(
        [*command, "--no-check"],
        cwd=place,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + TIMEOUT
    while not list(trials.glob("001-*/trial.json")):  # the first has ended, the second has just begun
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    finished = trials / "000-dit_vanilla-0" / "results.json"
    written = finished.stat().st_mtime_ns
    done = subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert finished.stat().st_mtime_ns == written
    records = [json.loads(path.read_text()) for path in sorted(trials.glob("*/trial.json"))]
    points = [(r["parameters"]["config"], r["parameters"]["seed_everything"]) for r in records]
    assert set(points) == GRID
    assert len(points) == len(GRID)
    assert [len(record["starts"]) for record in records] == [1, 1, 1, 1]  # the orphan was waited for
    ledger = Ledger(place / "here.sqlite")
    ((dataset, unit),) = ledger.accounts()
    events = ledger.events_by_run(dataset, unit=unit).values()
    assert [sum(event.steps for event in own) for own in events] == [4, 4, 4, 4]
    total = ledger.epsilon(dataset, unit=unit)
    assert f"the ledger has ε = {total:.4g} per user" in done.stdout
    # Said before, when one trial had begun and what it would leave was not known.
    said = re.search(r"with what the ledger has, at most ε = (\S+)", done.stdout)
    assert said is not None
    assert total < float(said[1]) < 1.3 * total
    assert "| vanilla" in done.stdout
    assert "| DP-aware" in done.stdout

    by_point = {(p["config"], p["seed_everything"]): name for name, p in by_agent[0].given.items()}
    for record, point in zip(records, points, strict=True):
        folder = place / record["command"][-1].partition("=")[2]
        here = json.loads((folder / "results.json").read_text())
        there = json.loads((place / "runs" / "sweep-sweep0" / by_point[point] / "results.json").read_text())
        assert here["method"] == there["method"]
        assert here["facts"] == there["facts"]
        assert here["epsilon"] == there["epsilon"]
        assert here["metrics"].keys() == there["metrics"].keys()
        figures = [
            {path.name for path in (run / "plots").glob("*.png")}
            for run in (folder, place / "runs" / "sweep-sweep0" / by_point[point])
        ]
        assert figures == [{"forecast_fan.png"}] * 2
        for name, value in here["metrics"].items():
            if not name.startswith("test/"):  # those are noisy, and the noise is never the same
                assert value == pytest.approx(there["metrics"][name]), name


CRASH = """\
from lightning.pytorch import Callback


class CrashAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("out of memory")
"""


def test_a_crash_does_not_end_the_agent_and_a_stop_closes_the_account(own_place):
    (own_place / "crash.py").write_text(CRASH)
    crash = [{"class_path": "crash.CrashAt", "init_args": {"step": step}} for step in (2, -1)]
    file = changed_smoke(
        own_place,
        "crash_and_stop.yaml",
        parameters={
            "config": {"value": "conf/model/dit_vanilla.yaml"},
            "seed_everything": {"value": 0},
            "trainer.callbacks+": {"values": crash},
        },
        command=["--trainer.max_steps=100000"],
    )
    with WandbServer(key=KEY) as server:
        variables = environment(own_place, ledger="stop.sqlite", server=server)
        make_sweep(own_place, file, variables)
        with agent(own_place, variables) as process:
            deadline = time.monotonic() + TIMEOUT
            while len(server.sweeps["sweep0"].given) < 2 or not trained(server, trial=1):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            server.sweeps["sweep0"].to_stop = list(server.runs)
            assert process.wait(timeout=TIMEOUT) == 0
    crashed, stopped = server.sweeps["sweep0"].given
    assert server.runs[crashed].exit_code == 1
    # Both trials closed their account: what is charged is what the folder says.
    ledger = Ledger(own_place / "stop.sqlite")
    ((dataset, unit),) = ledger.accounts()
    charged = ledger.events_by_run(dataset, unit=unit)
    assert len(charged) == 2
    for name, least in ((crashed, 2), (stopped, 1)):
        folder = own_place / "runs" / "sweep-sweep0" / name
        report = json.loads((folder / "privacy.json").read_text())
        assert report["status"] == "interrupted"
        assert sum(event.steps for event in charged[report["run"]]) == report["steps_charged"] >= least
        assert not (folder / "results.json").exists()
    assert [entry.kind for entry in ledger.entries()].count("close") == 2


def trained(server: WandbServer, *, trial: int) -> bool:
    """Whether the server has heard of a step of the trial."""
    name = list(server.sweeps["sweep0"].given)[trial]
    return name in server.runs and any("privacy/steps" in row for row in server.runs[name].history)


def test_two_ranks_in_each_trial(own_place):
    file = changed_smoke(
        own_place,
        "two_ranks.yaml",
        parameters={"config": {"value": "conf/model/dit_dp_aware.yaml"}, "seed_everything": {"value": 1}},
        command=["--trainer.devices=2", "--trainer.strategy=private_ddp"],
    )
    with WandbServer(key=KEY) as server:
        variables = environment(own_place, ledger="ranks.sqlite", server=server)
        make_sweep(own_place, file, variables)
        with agent(own_place, variables) as process:
            assert process.wait(timeout=TIMEOUT) == 0
    (run,) = server.runs.values()
    assert run.exit_code == 0
    assert [row["privacy/steps"] for row in run.history if "privacy/steps" in row] == [1, 2, 3, 4]
    assert run.summary["test/mse"] > 0
    ledger = Ledger(own_place / "ranks.sqlite")
    ((dataset, unit),) = ledger.accounts()
    assert [event.steps for event in ledger.events(dataset, unit=unit)] == [4]  # once, not once a rank
