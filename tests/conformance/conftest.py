"""The cut reads the models and the check of the full scan, which lives among the benchmarks."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _quiet_machine():
    torch.set_num_threads(1)
    torch.manual_seed(0)
