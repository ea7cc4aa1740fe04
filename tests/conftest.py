"""Shared by all tests: a ledger of their own, one thread, quiet third parties."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for the processes that tests start

import warnings

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


@pytest.fixture(autouse=True)
def ledger_path(tmp_path_factory, monkeypatch):
    """No test writes into the user's own ledger."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(path))
    return path


@pytest.fixture(autouse=True)
def quiet_lightning():
    """Lightning advises on workers and loggers, which is noise here; our own warnings stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        yield
