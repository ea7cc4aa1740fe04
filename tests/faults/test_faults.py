"""Faults of docs/results/faults.md whose guard lies outside of one training step."""

import ast
import functools
import multiprocessing
import os
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from replay.toys import PRIVACY, Learner, Line, Points

from lightning_dp.callbacks import preflight
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy import noise, plan, secure_noise as secure
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.timeseries.data import train_items
from lightning_dp.timeseries.data.train_items import describe_train_items
from lightning_dp.timeseries.data.windows import WindowDataset

ROOT = Path(__file__).parents[2]


def fit(folder, module, privacy: DifferentialPrivacy, *, data=None) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[privacy],
    )
    trainer.fit(module, datamodule=data or Points())
    return trainer


# --- P14, P17: what was trained names what was paid for -------------------------------------------------


def names_its_charges(checkpoint: dict, ledger: Path) -> bool:
    """Whether the ledger holds the entry that the checkpoint carries."""
    said = checkpoint["callbacks"].get("DifferentialPrivacy", {}).get("ledger")
    return said is not None and Ledger(ledger).contains(*said)


def saved(folder: Path) -> dict:
    trainer = fit(folder, Line(), DifferentialPrivacy(**PRIVACY))
    trainer.save_checkpoint(folder / "saved.ckpt")
    return torch.load(folder / "saved.ckpt", weights_only=False)


def test_p14_p17_a_checkpoint_names_its_charges(tmp_path, ledger_path):
    assert names_its_charges(saved(tmp_path), ledger_path)


def test_p14_p17_a_checkpoint_without_its_charges(tmp_path, ledger_path, monkeypatch):
    monkeypatch.setattr(DifferentialPrivacy, "state_dict", lambda self: {"epsilon": 1.0})
    assert not names_its_charges(saved(tmp_path), ledger_path)


# --- P15: noise that comes again ------------------------------------------------------------------------


def drawn_by(source: GaussianNoise) -> list[float]:
    return source.standard_normal(torch.Size([8]), device=torch.device("cpu")).tolist()


def in_a_fork(source: GaussianNoise) -> list[float]:
    context = multiprocessing.get_context("fork")
    theirs = context.SimpleQueue()
    process = context.Process(target=lambda: theirs.put(drawn_by(source)))
    process.start()
    drawn = theirs.get()
    process.join()
    return drawn


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_p15_a_generator_that_a_fork_inherits(monkeypatch):
    """Two processes that go on from one state draw the same; the real source looks at its process id."""

    def repeats() -> bool:
        source = GaussianNoise()
        drawn_by(source)
        return in_a_fork(source) == drawn_by(source)

    assert not repeats()
    monkeypatch.setattr(noise.os, "getpid", lambda: 1)
    assert repeats()


def test_p15_a_seeded_start(monkeypatch):
    """A restart, or a second run from one checkpoint, is a new source."""

    def repeats() -> bool:
        return drawn_by(GaussianNoise()) == drawn_by(GaussianNoise())

    assert not repeats()
    monkeypatch.setattr(noise, "entropy_bits", lambda: 0)
    assert repeats()


# --- P16: a secure mode that can't be installed ---------------------------------------------------------


def undeclared(source: str) -> set[str]:
    """Packages that a module of ours imports, anywhere in it, and pip would not install with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in project["dependencies"]}
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    return imported - declared - set(sys.stdlib_module_names) - {"lightning_dp"}


def test_p16_a_secure_source_that_needs_what_nobody_installs():
    source = Path(secure.__file__).read_text()
    assert undeclared(source) == set()
    planted = source + "\n\ndef generator():\n    from torchcsprng import create_random_device_generator\n"
    assert undeclared(planted) == {"torchcsprng"}


# --- P19: a plan that can't be met ----------------------------------------------------------------------


class Counted(Points):
    """Says how many rows were read."""

    def __init__(self) -> None:
        super().__init__()
        pool, counted = self.points, self

        class Rows(type(pool)):
            def __getitem__(self, index):
                counted.reads += 1
                return super().__getitem__(index)

        self.reads = 0
        self.points = Rows(*pool.tensors)


def refused_unread(folder: Path) -> bool:
    """Whether a plan whose release alone costs more than its ε is refused before a row is read."""
    data = Counted()
    options = {**PRIVACY, "noise_multiplier": None, "target_epsilon": 0.5}  # the release alone costs 0.7
    try:
        fit(folder, Learner(), DifferentialPrivacy(**options), data=data)
    except ValueError as error:
        return "can't be met" in str(error) and data.reads == 0
    return False


def test_p19_an_impossible_plan_is_refused_before_a_row_is_read(tmp_path):
    assert refused_unread(tmp_path)


def test_p19_calibration_that_forgets_the_release_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "calibrate_noise_multiplier", lambda *, prior=(), **facts: 50.0)
    assert not refused_unread(tmp_path)


# --- P20: windows that overlap --------------------------------------------------------------------------


def counts_windows_honestly(*, stride: int) -> bool:
    """Whether overlapping windows are called windows, with the number that one time step lies in."""
    windows = WindowDataset(
        np.arange(100.0)[:, None], covariates=np.zeros((100, 0)), context_length=6, horizon=2, stride=stride
    )
    unit = describe_train_items(windows, unit="window", length=8, train_stride=stride, user="household")
    rows = windows.__getitems__(list(range(len(windows))))["values"][:, :, 0].long()
    hits = int(torch.bincount(rows.flatten()).max())
    called_right = unit.name == "window" if hits > 1 else True
    return called_right and unit.windows_per_event == hits


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_p20_windows_are_counted(stride):
    assert counts_windows_honestly(stride=stride)


def test_p20_windows_that_overlap_and_are_not_counted(monkeypatch):
    monkeypatch.setattr(train_items, "count_windows_per_event", lambda **lengths: 1)
    assert not counts_windows_honestly(stride=1)


def test_p20_windows_that_overlap_and_are_called_records(monkeypatch):
    def as_record(**facts):
        return PrivacyUnit(**{**facts, "name": "record"})

    monkeypatch.setattr(train_items, "PrivacyUnit", as_record)
    assert not counts_windows_honestly(stride=1)


# --- P21: δ ---------------------------------------------------------------------------------------------


def refuses_a_large_delta(folder: Path) -> bool:
    """Whether a δ above 1 / N, which allows publishing one unit outright, is refused."""
    try:
        fit(folder, Line(), DifferentialPrivacy(**{**PRIVACY, "delta": 0.5}))
    except ValueError as error:
        return "[delta]" in str(error)
    return False


def test_p21_a_delta_above_one_over_the_units(tmp_path, monkeypatch):
    assert refuses_a_large_delta(tmp_path)
    monkeypatch.setattr(preflight, "_find_in_plan", lambda plan: [])
    assert not refuses_a_large_delta(tmp_path)


def asks_for_delta(make) -> bool:
    """Whether a callback can't be made without saying δ."""
    try:
        make(noise_multiplier=1.0, expected_batch_size=4)
    except TypeError as error:
        return "delta" in str(error)
    return False


def test_p21_a_delta_by_default():
    assert asks_for_delta(DifferentialPrivacy)
    assert not asks_for_delta(functools.partial(DifferentialPrivacy, delta=1e-5))
