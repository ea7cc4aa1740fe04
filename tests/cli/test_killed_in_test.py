"""A private fit that was killed when all of its steps were charged goes on to its test, for nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_rehearsal import own

from lightning_dp.cli import main
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.sweeps.trial import TrialProcess
from lightning_dp.sweeps.trial_lock import TrialLock
from lightning_dp.tracking.account import read_account


def test_a_fit_that_was_killed_in_its_test_goes_on_with_it(tmp_path, monkeypatch, capsys):
    folder, begun = tmp_path / "run", tmp_path / "begun"
    fit = [*own("SlowTest"), f"--run.dir={folder}"]
    environment = {**os.environ, "SLOW_TEST": str(begun), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_dp", *fit], env=environment, cwd=Path(__file__).parent
    )
    deadline = time.monotonic() + 200
    try:
        while not begun.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "results.json").exists()
    spent = read_account(folder).report["epsilon_spent"]
    head = Ledger().head()

    assert main([*fit, "--ckpt_path=last"]) == 0
    assert "all 2 steps of this run are charged" in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert results["epsilon"] == spent
    assert "test/accuracy" in results["metrics"]
    assert Ledger().head() == head
    # As its sweep sees it.
    lock = TrialLock.take(folder)
    assert lock is not None
    trial = TrialProcess(number=0, parameters={}, command=fit, lock=lock, environment={})
    assert trial.has_results()
    assert trial.value("test/accuracy") is not None
