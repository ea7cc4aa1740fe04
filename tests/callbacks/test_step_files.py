"""How much of this package has to be open to read one private step; see `benchmarks/step_files.py`."""

import runpy
from pathlib import Path

import pytest

COUNT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "step_files.py"))

MOST_OF_A_STEP = 37
"""Files of a later step, plus two for what a step does only now and then."""

MOST_FROM_THE_START = 72
"""With the ledger's, of which signatures and snapshots are seven, the report's four, and those that follow a
first batch."""


@pytest.mark.parametrize(
    ("step", "most", "known"),
    [
        (COUNT["USUAL"], MOST_OF_A_STEP, "privacy/clipping/unit_sums.py"),
        (None, MOST_FROM_THE_START, "privacy/ledger/ledger.py"),
    ],
)
def test_a_private_step_visits_no_more_files(tmp_path, step, most, known):
    files = COUNT["files_of_a_step"](tmp_path, step=step)
    assert {"callbacks/differential_privacy.py", "callbacks/private_training.py", known} <= set(files)
    assert len(files) <= most
