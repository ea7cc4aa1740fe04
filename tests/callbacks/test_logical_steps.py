"""One backward a physical batch, one step a logical one, one plan a fit; and what a step may return."""

import copy
import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from support import Records, Regression, make_trainer
from test_randomness import NoNoise, private
from torch import nn
from torch.utils.data import DataLoader

from lightning_dp.callbacks.logical_batches import LogicalBatches
from lightning_dp.privacy.ledger import Ledger

N = 12


def fit(tmp_path, module, *, steps=6, callbacks=(), data=None, trainer=None, **options):
    """A private fit with every unit in each batch, and its sums before noise, one vector a step."""
    privacy = private(**{"expected_batch_size": N, "max_grad_norm": 0.3, **options})
    privacy._noise = witness = NoNoise()
    training = make_trainer(tmp_path, steps=steps, privacy=privacy, callbacks=callbacks, **(trainer or {}))
    number = len([p for p in module.parameters() if p.requires_grad])
    error = None
    try:
        training.fit(module, datamodule=data or Records(N))
    except Exception as caught:  # how it ended is what tests look at
        error = caught
    parts = [witness.sums[at : at + number] for at in range(0, len(witness.sums), number)]
    return error, [torch.cat(part) for part in parts]


# --- sums that outlive their logical batch --------------------------------------------------------------


class ClosureAlone(Regression):
    """Lightning's documented pattern: run the closure, step on each third batch."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls % 3 == 0:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


class Skips(Regression):
    def on_train_batch_start(self, batch, batch_idx):
        self.calls = getattr(self, "calls", 0) + 1
        return -1 if self.calls == 2 else None


class Accumulates(Regression):
    def on_train_batch_start(self, batch, batch_idx):
        self.trainer.accumulate_grad_batches = 4


class StepsWithoutClosure(Regression):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step()
        optimizer_closure()


class ClosureTwice(Regression):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.step(closure=optimizer_closure)


class StepsTwice(Regression):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        optimizer.step()


class Sam(torch.optim.SGD):
    def step(self, closure=None):
        closure()
        super().step(closure)


class WithSam(Regression):
    def configure_optimizers(self):
        return Sam(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("module", "message", "released"),
    [
        (ClosureAlone, "took no step after the batch before", 0),
        (Accumulates, "took no step after the batch before", 0),
        (StepsWithoutClosure, "gave no loss to differentiate", 0),
        (ClosureTwice, "second backward", 0),
        (StepsTwice, "step twice", 1),
        (WithSam, "second backward", 1),
        (Skips, "no backward ran for the batch before", 1),
    ],
)
@pytest.mark.parametrize("physical", [None, 5])
def test_a_batch_without_its_own_step_is_refused(tmp_path, ledger_path, module, message, released, physical):
    error, sums = fit(tmp_path, module(), physical_batch_size=physical, expected_batch_size=4)
    if physical is None:
        assert message in str(error)
        assert len(sums) == released
    else:  # in the middle of a logical batch another sentence may come first
        assert isinstance(error, RuntimeError)
        assert len(sums) <= released
    charged = sum(event.steps for event in Ledger(ledger_path).events("records", unit="record"))
    assert charged >= len(sums)


def test_planted_sums_outlive_their_batch(tmp_path, monkeypatch):
    """The fault that the test above would catch in us: one unit is released three times over."""
    for name in ("begin_part", "collect", "step"):
        real = getattr(LogicalBatches, name)

        def lax(self, *, real=real, **options):
            self._stage = {"begin_part": "stepped", "collect": "begun", "step": "collected"}[real.__name__]
            real(self, **options)

        monkeypatch.setattr(LogicalBatches, name, lax)
    _, sums = fit(tmp_path, ClosureAlone(), data=Records(1), expected_batch_size=1, delta=0.5, steps=3)
    assert float(sums[0].norm()) > 2.5 * 0.3


# --- one plan -------------------------------------------------------------------------------------------


class Sets(Callback):
    def __init__(self, name, value):
        self.name, self.value = name, value

    def on_train_batch_end(self, trainer, *_):
        setattr(trainer.callbacks[0], self.name, self.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_grad_norm", 0.03), ("expected_batch_size", 2), ("noise_multiplier", 9.0), ("delta", 0.5)],
)
def test_settings_stay_as_planned_during_a_fit(tmp_path, name, value):
    error, sums = fit(tmp_path, Regression(), callbacks=[Sets(name, value)])
    assert f"privacy.{name} can't be changed during a fit" in str(error)
    assert len(sums) == 1


def test_settings_can_be_changed_between_fits(tmp_path):
    privacy = private()
    for norm in (0.3, 0.1):
        privacy.max_grad_norm = norm
        make_trainer(tmp_path, steps=1, privacy=privacy).fit(Regression(), datamodule=Records(N))
        assert privacy.plan.max_grad_norm == norm


def test_secure_noise_pays_for_its_rounding_or_is_refused(tmp_path):
    wide = Regression(width=2**16)  # 393,217 parameters
    error, _ = fit(tmp_path, wide, secure=True, noise_multiplier=100.0)
    assert "σ·√d is 6.271e+04 and may be 16384; release or train at most 26,843 values" in str(error)
    assert not (tmp_path / "privacy.json").exists()


# --- what trains ----------------------------------------------------------------------------------------


class Grown(Regression):
    def on_train_start(self):
        self.more = nn.Linear(4, 1)
        self.trainer.optimizers[0].add_param_group({"params": list(self.more.parameters())})


class Unfrozen(Regression):
    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_train_batch_end(self, *_):
        self.net[0].requires_grad_(True)


class Refrozen(Regression):
    def on_after_backward(self):
        self.net[0].requires_grad_(False)


class Replaced(Regression):
    def on_train_epoch_start(self):
        if self.current_epoch:
            self.net[2] = nn.Linear(16, 1)


class Tied(Regression):
    def on_train_batch_end(self, *_):
        self.net[0].bias = self.net[2].weight


class Foreign(Regression):
    """A head that is no submodule joins the optimizer when training starts."""

    def __init__(self, hook="on_train_start"):
        super().__init__()
        self.__dict__["head"] = nn.Linear(4, 1)
        self.__dict__[hook] = self.join

    def join(self, *_):
        if len(self.trainer.optimizers[0].param_groups) == 1:
            self.trainer.optimizers[0].add_param_group({"params": self.__dict__["head"].parameters()})

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.__dict__["head"](batch[0]).square().mean()


@pytest.mark.parametrize("module", [Grown, Unfrozen, Refrozen, Replaced, Tied, Foreign])
def test_parameters_that_come_and_go_are_refused_before_a_step_releases_them(tmp_path, module):
    error, sums = fit(tmp_path, module())
    assert isinstance(error, RuntimeError)
    assert "is fixed when training starts" in str(error)
    assert len(sums) <= (2 if module is Replaced else 1)


class ForeignFromTheStart(Foreign):
    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), *self.__dict__["head"].parameters()], lr=1.0)


def test_a_foreign_parameter_in_the_optimizer_is_refused_before_the_charge(tmp_path):
    error, _ = fit(tmp_path, ForeignFromTheStart())
    assert "steps a parameter that is not part of" in str(error)
    assert not (tmp_path / "privacy.json").exists()


# --- per-row losses -------------------------------------------------------------------------------------


class PerRow(Regression):
    form = staticmethod(lambda losses: losses)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.form((self.net(x).squeeze(1) - y).square())


class AsMapping(PerRow):
    form = staticmethod(lambda losses: {"losses": losses})


class AsBoth(PerRow):
    """The number that Lightning asks for is not what is trained on."""

    form = staticmethod(lambda losses: {"loss": losses.sum() * 7, "losses": losses, "more": 1})


@pytest.mark.parametrize("module", [PerRow, AsMapping, AsBoth])
@pytest.mark.parametrize("physical", [None, 5])
def test_per_row_losses_train_as_their_mean(tmp_path, module, physical):
    torch.manual_seed(0)
    plain, rows = Regression(), module()
    rows.load_state_dict(plain.state_dict())
    attributes = set(vars(rows))
    expected = fit(tmp_path / "mean", plain, steps=2)
    found = fit(tmp_path / "rows", rows, steps=2, physical_batch_size=physical)
    assert expected[0] is found[0] is None
    for one, other in zip(expected[1], found[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert set(vars(rows)) - attributes <= {"_trainer", "_hparams"}


def test_per_row_losses_of_a_compiled_module(tmp_path):
    module = PerRow()
    module.compile(backend="eager")
    error, sums = fit(tmp_path, module, steps=2)
    assert error is None
    assert len(sums) == 2


class TooFew(PerRow):
    form = staticmethod(lambda losses: losses[1:] if len(losses) == N else losses)


class OneForAll(PerRow):
    form = staticmethod(lambda losses: losses.mean()[None])


@pytest.mark.parametrize("module", [TooFew, OneForAll])
def test_losses_that_are_not_one_a_row_are_refused(tmp_path, module):
    error, sums = fit(tmp_path, module())
    assert "losses for a batch of 12 rows" in str(error)
    assert sums == []


class Copied(PerRow):
    """A copy of the module takes steps of its own, in the middle of the fit."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        again = copy.deepcopy(self)
        with torch.no_grad():
            again.net[0].weight.zero_()
            again.net[2].bias.fill_(7)
        again.net[2].weight.data.zero_()
        self.mean = again.training_step(batch, batch_idx)
        self.expected = (7 - batch[1]).square().mean()


def test_a_copy_takes_means_with_its_own_weights(tmp_path):
    module = Copied()
    error, _ = fit(tmp_path, module, steps=1)
    assert error is None
    torch.testing.assert_close(module.mean, module.expected)


# --- collations that leave rows out ---------------------------------------------------------------------


class Loses(Records):
    def __init__(self, keep):
        super().__init__(N)
        self.keep = keep

    def train_dataloader(self):
        def collate(items):
            batch = torch.utils.data.default_collate(items)
            return self.keep(batch) if len(items) == N else batch

        return DataLoader(self.dataset, batch_size=4, collate_fn=collate)


@pytest.mark.parametrize(
    ("keep", "module", "message"),
    [
        (lambda batch: None, Regression, "collate_fn returned None for 12 units"),
        (lambda batch: [part[1:] for part in batch], PerRow, "rows"),
        (lambda batch: [part[1:] for part in batch], Regression, "rows"),
    ],
)
def test_a_collation_that_leaves_units_out_is_refused(tmp_path, keep, module, message):
    error, sums = fit(tmp_path, module(), data=Loses(keep))
    assert message in str(error)
    assert sums == []


# --- choices by hand ------------------------------------------------------------------------------------


class StopsOnTheLoss(Regression):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 2:
            self.trainer.should_stop = True
        return loss


class StopsInAHook(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        trainer.should_stop = trainer.global_step == 2


@pytest.mark.parametrize(
    ("module", "callbacks"), [(StopsOnTheLoss, ()), (Regression, (StopsInAHook(),))], ids=["step", "hook"]
)
def test_stopping_by_hand_is_refused(tmp_path, module, callbacks):
    options = {"accept": {}, "delta": 1e-3}
    error, sums = fit(tmp_path, module(), callbacks=callbacks, steps=30, **options)
    assert "trainer.should_stop was set by neither" in str(error)
    assert len(sums) == 2
    assert json.loads((tmp_path / "privacy.json").read_text())["status"] == "interrupted"


class PublicScore(Regression):
    def validation_step(self, batch, batch_idx):
        self.log("val/score", 1.0)


class Validated(Records):
    validation_is_public = True

    def val_dataloader(self):
        return DataLoader(torch.zeros(2, 4))


def test_stopping_by_time_or_by_a_public_metric_goes_on(tmp_path):
    options = {"accept": {}, "delta": 1e-3}
    over = Timer(duration={"microseconds": 1})
    assert fit(tmp_path, Regression(), callbacks=[over], steps=30, **options)[0] is None
    stop = EarlyStopping("val/score", patience=1, mode="max")
    trainer = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    error, sums = fit(
        tmp_path, PublicScore(), callbacks=[stop], steps=30, data=Validated(N), trainer=trainer, **options
    )
    assert error is None
    assert len(sums) == 2
