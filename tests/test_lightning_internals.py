"""Lightning's private API: all of it in one file, all of it there in the Lightning that is installed."""

import ast
import re
from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

import lightning_dp
from lightning_dp import lightning_internals as internals

PACKAGE = Path(lightning_dp.__file__).parent
# What belongs to a trainer, a loop or a connector is read through one of these.
OWNERS = re.compile(r"(^|\.)(trainer|chosen|loop|fit_loop|epoch_loop|val_loop|connector|strategy)$")


def private_reads(source: str) -> list[tuple[int, str]]:
    """(line, what) of underscored attributes of Lightning's objects, and of underscored imports from it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            owner = ast.unparse(node.value)
            if OWNERS.search(owner) or node.attr == "_compiler_ctx":
                found.append((node.lineno, f"{owner}.{node.attr}"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            ("lightning.", "pytorch_lightning")
        ):
            found += [(node.lineno, name.name) for name in node.names if name.name.startswith("_")]
    return found


def test_nothing_else_reads_lightnings_private_api():
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {what}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "lightning_internals.py"
        for line, what in private_reads(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    "planted",
    [
        "loader = self.trainer.fit_loop._data_source.dataloader()",
        "from lightning.pytorch.core.optimizer import _configure_optimizers",
        "if trainer._detect_anomaly: pass",
        "module._compiler_ctx = None",
    ],
)
def test_private_api_that_is_read_elsewhere_is_found(planted):
    assert private_reads(planted)


@pytest.mark.parametrize("name", sorted(internals.PRIVATE_IMPORTS))
def test_private_names_are_there(name):
    assert internals.private_name(name) is not None


@pytest.mark.parametrize(
    ("owner", "name"),
    [(owner, name) for owner, names in internals.PRIVATE_ATTRIBUTES.items() for name in names],
)
def test_private_attributes_are_there(owner, name):
    trainer, module = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), LightningModule()
    one = {"trainer": trainer, "module": module, "ModelCheckpoint": ModelCheckpoint()}[
        owner.partition(".")[0]
    ]
    for step in owner.split(".")[1:]:
        one = getattr(one, step)
    assert hasattr(one, name)


@pytest.mark.parametrize("name", internals.OVERRIDDEN)
def test_overridden_methods_are_there(name):
    assert callable(getattr(LightningCLI, name))


def test_a_lightning_without_a_part_is_answered_by_a_sentence(monkeypatch):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    del trainer.fit_loop._data_source
    for ask in (internals.train_loader_of, lambda one: internals.replace_train_loader(one, None)):
        with pytest.raises(
            internals.LightningTooNew, match=r"_FitLoop._data_source.*install 'lightning>=2.6,<2.7'"
        ):
            ask(trainer)
    monkeypatch.setitem(internals.PRIVATE_IMPORTS, "_DataLoaderSource", "lightning.pytorch.trainer.moved")
    with pytest.raises(internals.LightningTooNew, match=r"moved\._DataLoaderSource"):
        internals.private_name("_DataLoaderSource")
