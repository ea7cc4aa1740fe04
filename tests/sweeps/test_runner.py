"""Sweeps without a server: every point once, whatever is killed when; failures kept; hopeless trials stopped.

Trials are `program.py`, real processes that cost nothing; `test_smoke.py` runs fits.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from lightning_dp.sweeps.progress import SweepProgress
from lightning_dp.sweeps.resources import Resources
from lightning_dp.sweeps.runner import SweepRunner
from lightning_dp.sweeps.study import SweepStudy
from lightning_dp.sweeps.sweep import read_sweep
from lightning_dp.sweeps.trial_lock import TrialLock

PROGRAM = Path(__file__).with_name("program.py")
GRID = {"quality": {"values": [3.0, 1.0, 2.0]}, "nested": {"parameters": {"a": {"value": None}}}}


@pytest.fixture
def write(tmp_path):
    """Writes a sweep file."""

    def write_(*, options: tuple[str, ...] = (), name: str = "tiny", **content: object) -> Path:
        path = tmp_path / f"{name}.yaml"
        whole = {
            "method": "grid",
            "metric": {"name": "test/loss", "goal": "minimize"},
            "parameters": GRID,
            "command": ["${env}", "${interpreter}", str(PROGRAM), "${args}", *options],
            **content,
        }
        path.write_text(yaml.safe_dump(whole))
        return path

    return write_


@pytest.fixture
def gate(tmp_path) -> Path:
    """Trials with `--until` this file stay at work until it is there; with `--unless` it they don't fail."""
    return tmp_path / "gate"


def run(file: Path, out: Path, *, workers: int = 2, limit: int | None = None, **how: bool) -> SweepStudy:
    study = SweepStudy(read_sweep(file), folder=out, limit=limit, **how)
    progress = SweepProgress(workers=workers, total=study.num_trials, ended=0)
    SweepRunner(study, resources=Resources(workers=workers, threads=1), progress=progress).run()
    return study


def agent(file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """The command of a user, in a process that can be killed."""
    command = [sys.executable, "-m", "lightning_dp", "sweep", "run", str(file), f"--out={out}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, *, pattern: str, number: int = 1) -> list[Path]:
    deadline = time.monotonic() + 120
    while len(found := sorted(path.glob(pattern))) < number:
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.02)
    return found


def starts(out: Path) -> dict[str, list[str]]:
    return {
        path.parent.name: path.read_text().splitlines() for path in sorted(out.glob("trials/*/starts.txt"))
    }


def states(study: SweepStudy) -> list[TrialState]:
    return [trial.state for trial in study.trials()]


def test_every_point_is_run_once_in_a_folder_that_says_what_it_was(write, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    study = run(write(), tmp_path / "out")
    assert states(study) == [TrialState.COMPLETE] * 3
    assert [trial.value for trial in study.trials()] == [3.0, 1.0, 2.0]
    assert list(starts(tmp_path / "out")) == ["000-3", "001-1", "002-2"]
    assert all(len(lines) == 1 and lines[0].endswith("None 1") for lines in starts(tmp_path / "out").values())
    record = json.loads((tmp_path / "out" / "trials" / "001-1" / "trial.json").read_text())
    assert record["parameters"] == {"quality": 1, "nested": {"a": None}}
    assert "--nested={'a': None}" in record["command"]
    assert record["command"][-1] == f"--run.dir={tmp_path / 'out' / 'trials' / '001-1'}"


def test_ended_trials_are_never_repeated_and_failed_ones_are_kept(write, tmp_path):
    file = write(options=("--fail=1",))
    study = run(file, tmp_path / "out")
    assert states(study) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    failed = study.trials()[1].user_attrs
    assert failed["exit_code"] == 3
    assert failed["reason"] == "it ended with exit code 3: the last words"
    assert states(run(file, tmp_path / "out")) == states(study)
    assert all(len(lines) == 1 for lines in starts(tmp_path / "out").values())


def test_failed_trials_are_repeated_only_when_asked(write, tmp_path, gate):
    """The cause is gone: the point gets another trial, and the failed ones stay on record."""
    file, out = write(options=("--fail=1", f"--unless={gate}")), tmp_path / "out"
    assert states(run(file, out)) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert len(run(file, out, retry_failed=True).failed()) == 2  # once more
    gate.touch()
    done = agent(file, out)
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 1
    assert said.count("failed: ") == 2
    done = agent(file, out, "--retry-failed")
    said, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert "failed: " not in said
    assert {name: len(lines) for name, lines in starts(out).items()} == dict.fromkeys(
        ["000-3", "001-1", "002-2", "003-1", "004-1"], 1
    )


def test_a_trial_without_the_metric_has_failed(write, tmp_path):
    study = run(write(metric={"name": "test/other", "goal": "minimize"}), tmp_path / "out", limit=1)
    assert study.trials()[0].user_attrs["reason"] == "it ended with test/other missing"


def test_a_trial_without_the_metric_stops_the_sweep(write, tmp_path):
    """The others would end as it did, after their charge; each further command tries one more."""
    file, out = write(metric={"name": "test/other", "goal": "minimize"}), tmp_path / "out"
    for count in (1, 2):
        done = agent(file, out, "--workers=1")
        said, err = done.communicate(timeout=120)
        assert done.returncode == 1, err
        assert "only their own program knows whether trials write test/other" in said
        assert "ended without test/other, by which trials are judged, so no other was started" in err
        assert states(SweepStudy(read_sweep(file), folder=out, limit=None)).count(TrialState.FAIL) == count
        assert len(starts(out)) == count


def test_another_sweep_in_the_same_folder_is_refused(write, tmp_path):
    run(write(), tmp_path / "out", limit=1)
    with pytest.raises(ValueError, match="another sweep"):
        SweepStudy(
            read_sweep(write(parameters={"quality": {"values": [9]}})), folder=tmp_path / "out", limit=None
        )


def test_limit_counts_all_trials_of_the_study(write, tmp_path):
    file = write()
    assert states(run(file, tmp_path / "out", limit=1)).count(TrialState.COMPLETE) == 1
    assert states(run(file, tmp_path / "out", limit=2)).count(TrialState.COMPLETE) == 2


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_draws_within_bounds_and_goes_on_where_it_was(write, tmp_path, method):
    parameters = {"quality": {"min": 0.5, "max": 2.0}, "steps": {"values": [1, 2]}}
    file = write(method=method, parameters=parameters)
    with pytest.raises(ValueError, match="never ends: give --limit"):
        SweepStudy(read_sweep(file), folder=tmp_path / "out", limit=None)
    run(file, tmp_path / "out", limit=2)
    study = run(file, tmp_path / "out", limit=5)
    drawn = [trial.params["quality"] for trial in study.trials()]
    assert len(set(drawn)) == 5
    assert all(0.5 <= value <= 2.0 for value in drawn)
    assert [trial.value for trial in study.trials()] == pytest.approx(drawn)


def test_hopeless_trials_are_stopped_and_recorded_as_such(write, tmp_path):
    file = write(
        metric={"name": "val", "goal": "minimize"},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
        parameters={"quality": {"values": [1.0, 9.0, 1.5]}},
        options=("--steps=12", "--seconds=0.25"),
    )
    study = run(file, tmp_path / "out", workers=1)
    assert states(study) == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert (tmp_path / "out" / "trials" / "001-9" / "stopped.txt").exists()  # it could close its account
    assert not (tmp_path / "out" / "trials" / "001-9" / "results.json").exists()


def test_killed_agent_trial_alive(write, tmp_path, gate):
    """SIGKILL for the agent only: the next one waits for the trial that goes on, and starts nothing twice."""
    file, out = write(options=(f"--until={gate}",)), tmp_path / "out"
    first = agent(file, out, "--workers=1")
    wait_for(out, pattern="trials/000-*/checkpoints/last.ckpt")
    first.kill()
    first.wait()
    second = agent(file, out, "--workers=3")
    assert second.stderr is not None
    said = iter(second.stderr.readline, "")
    assert any("000-3 is still running" in line for line in said)
    gate.touch()
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert {name: len(lines) for name, lines in starts(out).items()} == {
        "000-3": 1,
        "001-1": 1,
        "002-2": 1,
    }


def test_killed_agent_and_trial(write, tmp_path, gate, capsys):
    """SIGKILL for both: the trial goes on from its checkpoint."""
    file, out = write(options=(f"--until={gate}",)), tmp_path / "out"
    first = agent(file, out, "--workers=1")
    wait_for(out, pattern="trials/000-*/checkpoints/last.ckpt")
    first.kill()
    first.wait()
    pid = int(starts(out)["000-3"][0].split()[0])
    os.kill(pid, signal.SIGKILL)
    gate.touch()
    study = run(file, out, workers=3)
    assert "000-3 goes on from its checkpoint" in capsys.readouterr().err
    assert states(study) == [TrialState.COMPLETE] * 3
    assert [line.split()[1] for line in starts(out)["000-3"]] == ["None", "last"]
    assert len(starts(out)["001-1"]) == 1


def test_ctrl_c_lets_trials_close_their_account_and_go_on_later(write, tmp_path, gate):
    file, out = write(options=(f"--until={gate}",)), tmp_path / "out"
    first = agent(file, out, "--workers=2")
    wait_for(out, pattern="trials/*/checkpoints/last.ckpt", number=2)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "Traceback" not in err
    assert "3 trials left: the same command goes on" in err
    assert len(wait_for(out, pattern="trials/*/stopped.txt", number=2)) == 2
    gate.touch()
    second = agent(file, out, "--workers=3")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert [lines[-1].split()[1] for lines in starts(out).values()] == ["last", "last", "None"]


@pytest.mark.parametrize("across_hosts", [False, True], ids=["sqlite", "journal"])
def test_agents_that_share_a_study_share_the_work(write, tmp_path, across_hosts):
    file, out = write(parameters={"quality": {"values": list(range(1, 7))}}), tmp_path / "out"
    SweepStudy(read_sweep(file), folder=out, limit=None, across_hosts=across_hosts)
    assert (out / ("study.journal" if across_hosts else "study.sqlite")).exists()
    agents = [agent(file, out, "--workers=2") for _ in range(2)]
    for one in agents:
        _, err = one.communicate(timeout=90)
        assert one.returncode == 0, err
    assert len(starts(out)) == 6
    assert all(len(lines) == 1 for lines in starts(out).values())


def test_a_claim_is_exclusive_and_dies_with_its_process(tmp_path):
    lock = TrialLock.take(tmp_path / "trial")
    assert lock is not None
    assert TrialLock.take(tmp_path / "trial") is None
    assert not lock.is_running()
    sleeper = subprocess.Popen(["sleep", "30"], pass_fds=[lock.handle_for_process()])
    lock.handed_over()
    assert lock.is_running()
    lock.release()
    second = TrialLock.take(tmp_path / "trial")
    assert second is not None  # its agent is gone
    assert second.is_running()  # it is not
    sleeper.kill()
    sleeper.wait()
    assert not second.is_running()


@pytest.mark.parametrize(
    ("visible", "workers", "expected"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,6", 3, ["4", "6", "4"]),
        ("", 2, [None, None]),
        ("-1", 1, [None]),
    ],
)
def test_gpus_and_cores_are_divided(monkeypatch, visible, workers, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("OMP_NUM_THREADS")
    resources = Resources.of_this_machine(workers=workers)
    environments = [resources.environment(worker) for worker in range(workers)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in environments] == expected
    cores = len(os.sched_getaffinity(0))
    assert {each["OMP_NUM_THREADS"] for each in environments} == {str(max(1, cores // workers))}
    with pytest.raises(ValueError, match="--workers is 0"):
        Resources.of_this_machine(workers=0)
