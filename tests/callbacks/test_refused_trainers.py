"""Settings of a trainer, loader or module that a private fit can't have: one sentence, before the charge."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from support import Records, Regression, make_trainer
from test_differential_privacy import private
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.trainer_checks import check_trainer

N = 100


class Lbfgs(Regression):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Sparse(Regression):
    def __init__(self):
        super().__init__(extra=nn.Embedding(5, 4, sparse=True))


class SparseBag(Regression):
    def __init__(self):
        super().__init__(extra=nn.Sequential(nn.EmbeddingBag(5, 4, sparse=True)))


class Complex(Regression):
    def __init__(self):
        super().__init__()
        self.waves = nn.Parameter(torch.zeros(3, dtype=torch.cfloat))


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("a private row was read")


def loader(**options):
    return DataLoader(Records(N).dataset, **options)


def refused(tmp_path, message, *, module=None, loaders=None, callbacks=(), steps=3, **options):
    """The fit is refused in a sentence, nothing was charged and nothing written."""
    trainer = make_trainer(tmp_path, steps=steps, privacy=private(), callbacks=callbacks, **options)
    given = {"train_dataloaders": loaders} if loaders is not None else {"datamodule": Records(N)}
    with pytest.raises(ValueError, match=message) as found:
        trainer.fit(module or Regression(), **given)
    assert len(str(found.value)) < 500
    assert not (tmp_path / "privacy.json").exists()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (StochasticWeightAveraging(swa_lrs=0.1), "it changes what a step is"),
        (GradientAccumulationScheduler({0: 1, 4: 2}), "it changes what a step is"),
        (BatchSizeFinder(), "it trains on private rows before the fit"),
        (BackboneFinetuning(), "freezes, unfreezes or replaces parameters"),
        (ModelPruning("l1_unstructured"), "freezes, unfreezes or replaces parameters"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks(tmp_path, callback, message):
    trainer = make_trainer(tmp_path, steps=3, privacy=private(), callbacks=[callback])
    with pytest.raises(ValueError, match=f"{type(callback).__name__} can't be used with privacy.*{message}"):
        check_trainer(trainer)  # Lightning's own hooks of some of them come before ours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "16-true"}, "precision='16-true'.*loss scaler"),
        ({"detect_anomaly": True}, "detect_anomaly=True.*stop the run"),
        ({"val_check_interval": 0.5}, "val_check_interval=0.5.*an epoch of 100 / 10 is 10 steps.*interval=5"),
        ({"val_check_interval": "00:00:10:00"}, "val_check_interval.*set an int"),
        ({"steps": -1, "max_epochs": 3}, "3 epochs of 100 / 10 are 30 steps: set trainer.max_steps=30"),
        ({"steps": -1, "max_epochs": -1}, "max_steps=-1.*set it to the number of optimizer steps"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_settings(tmp_path, options, message):
    refused(tmp_path, message, **options)


class Tpu(SingleDeviceStrategy):
    """A strategy that nobody here knows."""


@pytest.mark.parametrize("strategy", [Tpu(), FSDPStrategy()], ids=["unknown", "fsdp"])
def test_strategies_that_nobody_looked_at(tmp_path, strategy):
    trainer = make_trainer(tmp_path, steps=3, privacy=private())
    trainer._accelerator_connector.strategy = strategy
    with pytest.raises(ValueError, match=rf"strategy='{type(strategy).__name__}' can't be used with privacy"):
        check_trainer(trainer)


class Scaled(MixedPrecision):
    """A precision of somebody's own."""


def test_a_precision_plugin_of_ones_own(tmp_path):
    refused(tmp_path, "plugins='Scaled'.*scale the loss", plugins=[Scaled("bf16-mixed", "cpu")])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Lbfgs, "LBFGS evaluates the loss several times"),
        (Sparse, "'extra' is Embedding"),
        (SparseBag, "'extra.0' is EmbeddingBag"),
        (Complex, "'waves' is complex"),
        (Manual, "several optimizers.*a fit of its own"),
    ],
)
def test_modules(tmp_path, module, message):
    refused(tmp_path, message, module=module())


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        (CombinedLoader([loader(batch_size=8), loader(batch_size=8)]), "a CombinedLoader of several"),
        (loader(batch_size=None), "has no batch size"),
        (DataLoader(Stream(), batch_size=8), "IterableDataset"),
        ([loader(batch_size=8), loader(batch_size=8)], "is a list"),
    ],
    ids=["combined", "no batch size", "stream", "list"],
)
def test_loaders(tmp_path, loaders, message):
    refused(tmp_path, message, loaders=loaders)


def test_double_precision_trains_or_is_refused_before_the_charge(tmp_path):
    trainer = make_trainer(tmp_path, steps=2, privacy=private(), precision="64-true")
    try:
        trainer.fit(Regression(), datamodule=Records(N))
    except ValueError:
        assert not (tmp_path / "privacy.json").exists()
    else:
        assert trainer.global_step == 2


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_by_the_trainer_comes_after_the_noise(tmp_path, algorithm):
    """It post-processes what was released, so it is allowed; SGD of rate 1 shows the gradient."""
    module = Regression()
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    options = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    privacy = private(noise_multiplier=50.0)
    make_trainer(tmp_path, steps=1, privacy=privacy, **options).fit(module, datamodule=Records(N))
    moved = before - torch.cat([p.detach().flatten() for p in module.parameters()])
    size = moved.norm() if algorithm == "norm" else moved.abs().max()
    assert float(size) == pytest.approx(1e-3, rel=1e-2)
    assert moved.count_nonzero() == len(moved), "noise reached every parameter"


def test_all_that_a_trainer_has_to_change_is_said_at_once(tmp_path):
    class Module(BoringModel):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-2, expected_batch_size=8)
    trainer = Trainer(
        max_epochs=2,
        accumulate_grad_batches=4,
        overfit_batches=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[privacy, EarlyStopping(monitor="val_loss")],
    )
    with pytest.raises(ValueError, match="accumulate_grad_batches=4") as refused:
        trainer.fit(Module())
    text = str(refused.value)
    for part in (
        "overfit_batches=2",
        "2 epochs of 64 / 8 are 16 steps: set trainer.max_steps=16",
        "EarlyStopping.monitor is 'val_loss'",
        "ReduceLROnPlateau feeds 'val_loss'",
    ):
        assert part in text, text
