"""No file of a killed fit claims less than a witness saw; `benchmarks/artefacts.py` kills more of them."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "artefacts.py"


def test_a_killed_fit_claims_no_less_than_was_released_and_the_old_report_is_caught(tmp_path):
    path = tmp_path / "artefacts.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--kills=8",
        "--fits=8",
        "--planted=3",
        "--seed=3",
        f"--json={path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    sound, planted = json.loads(path.read_text())["rows"]
    assert sound["kills"] >= 8
    assert sound["figures_read"] > 20
    assert sound["processes_with_a_claim_below"] == sound["folders_refused"] == 0
    assert planted["processes_with_a_claim_below"] == planted["kills"] == 3
