"""No file of a killed run claims less than a witness saw; `benchmarks/artefacts*.py` kill more of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "script",
    [["artefacts.py", "--fits=8"], ["artefacts_evolve.py", "--runs=8"]],
    ids=["fit", "private evolution"],
)
def test_a_killed_run_claims_no_less_than_was_released_and_the_old_report_is_caught(script, tmp_path):
    path = tmp_path / "artefacts.json"
    name, *options = script
    command = [sys.executable, str(BENCHMARKS / name), "--kills=8", "--planted=3", "--seed=3", *options]
    done = subprocess.run(
        [*command, f"--json={path}"], capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    sound, planted = json.loads(path.read_text())["rows"]
    assert sound["kills"] >= 8
    assert sound["figures_read"] > 20
    assert sound["processes_with_a_claim_below"] == sound["folders_refused"] == 0
    assert planted["processes_with_a_claim_below"] == planted["kills"] == 3
