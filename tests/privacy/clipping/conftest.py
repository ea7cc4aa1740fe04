"""One thread: the models are tiny and the workers many."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_machine():
    torch.set_num_threads(1)
    torch.manual_seed(0)
