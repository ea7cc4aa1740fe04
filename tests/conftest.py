"""Shared by all tests: a ledger of their own, one thread, quiet third parties."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for the processes that tests start

import warnings

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


_LONG = ("test_smoke.py", "test_wandb_online.py", "test_configs.py", "test_cli.py", "test_image_configs.py")


def pytest_collection_modifyitems(items):
    """Files of few tests that take minutes come first, so that no worker is alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in _LONG)


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
