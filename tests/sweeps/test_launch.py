"""Agents as jobs: really run by submitit's local executor; for Slurm the script is read, not run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from lightning_dp.commands.sweep import main
from lightning_dp.sweeps.study import SweepStudy
from lightning_dp.sweeps.sweep import read_sweep

PROGRAM = Path(__file__).with_name("program.py")


def launch(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: submitit sets up logging when imported, which closes pytest's stderr."""
    command = [sys.executable, "-m", "lightning_dp", "sweep", "launch", str(file), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    command = ["${env}", "${interpreter}", str(PROGRAM), "${args}"]
    content = {"method": "grid", "parameters": {"quality": {"values": [1, 2, 3]}}, "command": command}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A machine where `sbatch` takes jobs and nothing runs them; returns the folder of what it took."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, script in {"sbatch": 'cp "$1" "$0.$$.sh"; echo "Submitted batch job 12$$"', "srun": ""}.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    return bin_


def test_local_agents_share_the_study(file, tmp_path):
    out = tmp_path / "out"
    done = launch(file, "--cluster=local", "--agents=2", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("job ") == 2
    study = SweepStudy(read_sweep(file), folder=out, limit=None)
    deadline = time.monotonic() + 90
    while not all(trial.state == TrialState.COMPLETE for trial in study.trials()):
        assert time.monotonic() < deadline, [path.read_text() for path in out.glob("jobs/*.err")]
        time.sleep(0.1)
    starts = [path.read_text().splitlines() for path in out.glob("trials/*/starts.txt")]
    assert [len(lines) for lines in starts] == [1, 1, 1]


def test_slurm_gets_a_job_an_agent(file, slurm, tmp_path):
    out = tmp_path / "out"
    options = ["--agents=2", "--gpus=2", "--cpus=8", "--minutes=90", "--partition=long", "--workers=2"]
    done = launch(file, "--cluster=slurm", f"--out={out}", *options)
    assert done.returncode == 0, done.stderr
    scripts = [path.read_text() for path in slurm.glob("sbatch.*.sh")]
    assert len(scripts) == 2
    for script in scripts:
        for line in (
            "#SBATCH --cpus-per-task=8",
            "#SBATCH --gpus-per-node=2",
            "#SBATCH --nodes=1",
            "#SBATCH --ntasks-per-node=1",
            "#SBATCH --partition=long",
            "#SBATCH --time=90",
            "#SBATCH --job-name=lightning-dp-sweep",
        ):
            assert line in script.splitlines()
        assert f"{sys.executable} -u -m submitit.core._submit" in script
    assert (out / "study.journal").exists()  # the agents are on several machines


def test_without_slurm_there_is_a_sentence(file, tmp_path):
    done = launch(file, "--cluster=slurm", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "--cluster=slurm can't be used from here" in done.stderr


def test_private_trials_do_not_go_to_several_machines(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    options = ["--cluster=slurm", f"--out={tmp_path / 'out'}", "--override=seed_everything=0"]
    with pytest.raises(ValueError, match="take --agents 1 --workers 3"):
        main(
            [
                "launch",
                "sweeps/smoke.yaml",
                "--agents=3",
                *options,
                "--override=config=conf/model/dit_vanilla.yaml",
            ]
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cluster=local", "--agents=0"], "--agents is 0"),
        (["--cluster=local", "--minutes=0"], "--minutes is 0"),
        (["--cluster=local", "--override=x"], "must be KEY=VALUE"),
        (["--cluster=local", "--limit=0"], "--limit is 0"),
    ],
)
def test_mistakes_are_named(file, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        main(["launch", str(file), f"--out={tmp_path / 'out'}", *options])
