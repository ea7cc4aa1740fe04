"""One private step, looked at from outside: what reaches the weights, and what it is charged for."""

import copy
import json

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from support import Records, Regression, make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.units import PrivacyUnit

B, N, SIGMA, C = 10, 100, 1.3, 0.4


def private(**options) -> DifferentialPrivacy:
    defaults = {"noise_multiplier": SIGMA, "delta": 1e-3, "expected_batch_size": B, "max_grad_norm": C}
    return DifferentialPrivacy(**{**defaults, **options})


class WitnessedNoise(GaussianNoise):
    """The real source; keeps a copy of what it handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def standard_normal(self, shape, *, device):
        value = super().standard_normal(shape, device=device)
        self.drawn.append(value.clone())
        return value


def loop_clipped_sum(module: Regression, x: Tensor, y: Tensor, clip: float) -> list[Tensor]:
    """Σ clip(g) by one ordinary backward per record, in double precision."""
    module = copy.deepcopy(module).double()
    total = [torch.zeros_like(p) for p in module.parameters()]
    for xi, yi in zip(x.double(), y.double(), strict=True):
        loss = (module.net(xi[None]).squeeze(1) - yi).square().mean()
        grads = torch.autograd.grad(loss, list(module.parameters()))
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for t, g in zip(total, grads, strict=True):
            t += g * min(1.0, clip / norm)
    return total


@pytest.mark.parametrize("physical", [None, 3])
def test_update_is_noisy_clipped_sum_over_expected_batch_size(tmp_path, physical):
    data, module, privacy = Records(N), Regression(), private(physical_batch_size=physical)
    before = copy.deepcopy(module)
    privacy._noise = witness = WitnessedNoise()
    make_trainer(tmp_path, steps=1, privacy=privacy).fit(module, datamodule=data)
    seen = torch.cat(module.seen).long()
    x, y = data.dataset.tensors
    expected = loop_clipped_sum(before, x[seen], y[seen], C)
    assert len(witness.drawn) == len(list(module.parameters())), "noise once, not per physical batch"
    for old, new, noise, want in zip(
        before.parameters(), module.parameters(), witness.drawn, expected, strict=True
    ):
        update = (old - new).detach().double()  # SGD with rate 1
        torch.testing.assert_close(update * B - SIGMA * C * noise.double(), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("physical", [None, 4])
def test_noise_of_a_step_without_gradient_has_the_planned_scale(tmp_path, physical):
    module = Regression(width=12_000, zero_loss=True)
    before = copy.deepcopy(module)
    privacy = private(physical_batch_size=physical, accept={"unchecked": "its gradient is zero on purpose"})
    make_trainer(tmp_path, steps=1, privacy=privacy).fit(module, datamodule=Records(N))
    updates = [(a - b).flatten() for a, b in zip(before.parameters(), module.parameters(), strict=True)]
    update = torch.cat(updates).detach()
    assert update.numel() >= 50_000
    # The standard error of a standard deviation over 72,001 values is 0.26 %.
    assert float(update.std()) == pytest.approx(SIGMA * C / B, rel=0.01)


def test_batches_are_poisson_over_units(tmp_path):
    module = Regression()
    trainer = make_trainer(tmp_path, steps=200, privacy=private())
    trainer.fit(module, datamodule=Records(N))
    assert trainer.global_step == 200
    sizes = np.array([len(seen) for seen in module.seen])
    # Binomial(100, 0.1): mean 10, variance 9; a shuffled loader has variance 0.
    assert abs(sizes.mean() - 10) < 5 * 3 / np.sqrt(200)
    assert 5 < sizes.var() < 14
    counts = np.bincount(torch.cat(module.seen).long().numpy(), minlength=N)
    assert abs(counts.mean() - 20) < 2.5
    assert counts.min() > 3
    assert counts.max() < 45


def test_empty_batches_step_are_noised_and_charged(tmp_path):
    module = Regression()
    privacy = private(expected_batch_size=1, physical_batch_size=2)
    privacy._noise = witness = WitnessedNoise()
    trainer = make_trainer(tmp_path, steps=60, privacy=privacy)
    trainer.fit(module, datamodule=Records(N))
    assert trainer.global_step == 60
    assert len(witness.drawn) == 60 * len(list(module.parameters()))
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert report["steps_charged"] == 60
    # e^{-1} of the batches are empty; their padding row is record 0, whose weight is 0.
    alone = sum(1 for seen in module.seen if len(seen) == 1 and seen[0] == 0)
    assert alone > 5


def test_all_weight_zero_batch_moves_nothing_but_noise(tmp_path):
    module = Regression()
    before = copy.deepcopy(module)
    privacy = private(expected_batch_size=1, delta=1e-10, num_units=10**9)  # q = 1e-9: every batch is empty
    privacy._noise = witness = WitnessedNoise()
    make_trainer(tmp_path, steps=1, privacy=privacy).fit(module, datamodule=Records(N))
    for old, new, noise in zip(before.parameters(), module.parameters(), witness.drawn, strict=True):
        torch.testing.assert_close((old - new).detach(), SIGMA * C * noise, rtol=1e-4, atol=1e-7)


def test_a_huge_and_a_broken_record_change_the_sum_by_at_most_the_clip(tmp_path):
    data, module = Records(N), Regression()
    data.dataset.tensors[0][3] = 1e30
    data.dataset.tensors[0][4] = float("nan")
    data.dataset.tensors[0][3, 0], data.dataset.tensors[0][4, 0] = 3, 4
    data.dataset.tensors[1][5] = 1e30
    trainer = make_trainer(tmp_path, steps=20, privacy=private(expected_batch_size=50))
    trainer.fit(module, datamodule=data)
    assert all(p.isfinite().all() for p in module.parameters())
    assert float(trainer.callback_metrics["privacy/epsilon"]) > 0


class WitnessedSums(BookKeeping):
    """The real engine; keeps what it handed over."""

    taken: dict[str, Tensor] | None = None

    def take(self):
        sums = super().take()
        self.taken = {name: value.clone() for name, value in sums.items()}  # noise is added in place
        return sums


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_one_record_less_leaves_the_other_records_contributions_as_they_were(tmp_path, precision):
    whole = Records(39)

    def sums(records: slice) -> dict[str, Tensor]:
        data, engine = Records(39), WitnessedSums()
        data.dataset = TensorDataset(*(t[records] for t in whole.dataset.tensors))
        n = len(data.dataset)
        privacy = private(expected_batch_size=n, num_units=n, clipping_engine=engine, max_grad_norm=0.01)
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, steps=1, privacy=privacy, precision=precision)
        trainer.fit(Regression(), datamodule=data)
        assert engine.taken is not None
        return engine.taken

    every, others, own = sums(slice(None)), sums(slice(0, 38)), sums(slice(38, None))
    moved = [every[name] - others[name] - own[name] for name in every]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) <= 1e-5 * 0.01


def test_a_mean_over_more_rows_than_half_precision_can_count_is_refused(tmp_path):
    class Half(Regression):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).bfloat16()

    privacy = private(expected_batch_size=300, num_units=300)
    with pytest.raises(RuntimeError, match="take their mean in fp32"):
        make_trainer(tmp_path, steps=1, privacy=privacy).fit(Half(), datamodule=Records(300))


def test_same_seed_gives_other_noise_and_other_batches(tmp_path):
    weights, batches = [], []
    for folder in ("a", "b"):
        seed_everything(1, verbose=False)
        module = Regression()
        make_trainer(tmp_path / folder, steps=3, privacy=private()).fit(module, datamodule=Records(N))
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        batches.append([seen.tolist() for seen in module.seen])
    assert not torch.equal(*weights)
    assert batches[0] != batches[1]


def test_module_and_trainer_are_left_as_they_were(tmp_path):
    module = Regression()
    attributes = {name: set(vars(child)) for name, child in module.named_modules()}
    trainer = make_trainer(tmp_path, steps=2, privacy=private(physical_batch_size=3))
    trainer.fit(module, datamodule=Records(N))
    for name, child in module.named_modules():
        assert set(vars(child)) - attributes[name] <= {"_trainer", "_hparams"}
        assert not child._forward_hooks
        assert not child._forward_pre_hooks
        assert not child._backward_hooks
    assert trainer.accumulate_grad_batches == 1


def test_loader_given_to_fit_is_swapped_too(tmp_path):
    module = Regression()
    loader = DataLoader(Records(N).dataset, batch_size=8, shuffle=True)
    make_trainer(tmp_path, steps=30, privacy=private()).fit(module, train_dataloaders=loader)
    assert len({len(seen) for seen in module.seen}) > 2


def test_rows_of_one_unit_are_clipped_as_one(tmp_path):
    """Two rows a unit: the contribution of a unit stays within C, not 2C."""

    class Pairs(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return torch.full((2, 4), 50.0 + index), torch.full((2,), -50.0)

    class Data(Records):
        def privacy_unit(self):
            return PrivacyUnit(name="user", num_units=N, rows_per_unit=2, description="one customer")

        def synthetic_items(self, num_items):
            return [(torch.rand(2, 4), torch.rand(2)) for _ in range(num_items)]

        def train_dataloader(self):
            def collate(items):
                return [torch.cat(parts) for parts in zip(*items, strict=True)]

            return DataLoader(Pairs(), batch_size=4, collate_fn=collate)

    module, privacy = Regression(), private(expected_batch_size=1, max_grad_norm=1.0)
    before = copy.deepcopy(module)
    privacy._noise = witness = WitnessedNoise()
    make_trainer(tmp_path, steps=1, privacy=privacy).fit(module, datamodule=Data(N))
    units = len(module.seen[0]) // 2
    total = torch.cat(
        [
            (old - new).detach().flatten() - SIGMA * noise.flatten()
            for old, new, noise in zip(before.parameters(), module.parameters(), witness.drawn, strict=True)
        ]
    )
    assert float(total.norm()) <= units * (1 + 1e-4)
    assert json.loads((tmp_path / "privacy.json").read_text())["epsilon_of_unit"]["user"] > 0


def test_ledger_is_charged_and_credit_returned_at_a_clean_end(tmp_path, ledger_path):
    privacy = private(reserve_steps=50)
    make_trainer(tmp_path, steps=7, privacy=privacy).fit(Regression(), datamodule=Records(N))
    events = Ledger(ledger_path).events("records", unit="record")
    assert sum(event.steps for event in events) == 7
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert report["status"] == "finished"
    assert report["epsilon_spent"] == pytest.approx(
        Ledger(ledger_path).epsilon("records", unit="record"), abs=1e-9
    )


def test_two_fits_of_one_callback_are_two_runs_and_both_are_charged(tmp_path, ledger_path):
    privacy = private()
    reports = []
    for steps in (3, 5):
        make_trainer(tmp_path, steps=steps, privacy=privacy).fit(Regression(), datamodule=Records(N))
        reports.append(json.loads((tmp_path / "privacy.json").read_text()))
    assert [report["num_steps"] for report in reports] == [3, 5]
    assert reports[0]["run"] != reports[1]["run"]
    assert sum(e.steps for e in Ledger(ledger_path).events("records", unit="record")) == 8


def test_an_exception_charges_the_steps_that_were_taken(tmp_path, ledger_path):
    class Fails(Regression):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 4:
                raise ArithmeticError("as planned")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ArithmeticError):
        make_trainer(tmp_path, steps=10, privacy=private()).fit(Fails(), datamodule=Records(N))
    assert sum(e.steps for e in Ledger(ledger_path).events("records", unit="record")) == 4
    assert json.loads((tmp_path / "privacy.json").read_text())["status"] == "interrupted"


def test_resume_goes_on_with_its_account_and_ends_early_by_what_was_lost(tmp_path, ledger_path):
    """A checkpoint of step 4 is resumed after 6 were taken: the 2 lost ones stay charged."""
    path = tmp_path / "at4.ckpt"

    class Saves(Regression):
        def on_train_batch_end(self, *_):
            if self.trainer.global_step == 4:
                self.trainer.save_checkpoint(path)
            if self.trainer.global_step == 6:
                raise ArithmeticError("as planned")

    with pytest.raises(ArithmeticError):
        make_trainer(tmp_path, steps=10, privacy=private()).fit(Saves(), datamodule=Records(N))
    trainer = make_trainer(tmp_path, steps=10, privacy=private())
    with pytest.warns(UserWarning, match="2 steps were charged and lost"):
        trainer.fit(Regression(), datamodule=Records(N), ckpt_path=path, weights_only=False)
    assert trainer.global_step == 8
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert report["steps_charged"] == 10
    assert sum(e.steps for e in Ledger(ledger_path).events("records", unit="record")) == 10


def test_resume_counts_every_reservation_of_earlier_processes(tmp_path, ledger_path):
    """Three reservations of two steps; the last one alone would leave room for four steps too many."""
    path = tmp_path / "at2.ckpt"

    class Saves(Regression):
        def on_train_batch_end(self, *_):
            if self.trainer.global_step == 2:
                self.trainer.save_checkpoint(path)
            if self.trainer.global_step == 6:
                raise ArithmeticError("as planned")

    with pytest.raises(ArithmeticError):
        make_trainer(tmp_path, steps=10, privacy=private(reserve_steps=2)).fit(Saves(), datamodule=Records(N))
    trainer = make_trainer(tmp_path, steps=10, privacy=private(reserve_steps=2))
    with pytest.warns(UserWarning, match="4 steps were charged and lost"):
        trainer.fit(Regression(), datamodule=Records(N), ckpt_path=path, weights_only=False)
    assert trainer.global_step == 6
    assert sum(e.steps for e in Ledger(ledger_path).events("records", unit="record")) == 10


def test_resume_without_its_ledger_or_with_another_plan_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "c.ckpt"
    trainer = make_trainer(tmp_path, steps=3, privacy=private())
    trainer.fit(Regression(), datamodule=Records(N))
    trainer.save_checkpoint(path)
    for changed in (private(noise_multiplier=0.9), private(expected_batch_size=20)):
        with pytest.raises(RuntimeError, match="an earlier process"):
            make_trainer(tmp_path, steps=9, privacy=changed).fit(
                Regression(), datamodule=Records(N), ckpt_path=path, weights_only=False
            )
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "other.sqlite"))
    with pytest.raises(RuntimeError, match="ledger"):
        make_trainer(tmp_path, steps=9, privacy=private()).fit(
            Regression(), datamodule=Records(N), ckpt_path=path, weights_only=False
        )


def test_resume_from_unaccounted_weights_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, steps=2, privacy=None)
    trainer.fit(Regression(), datamodule=Records(N))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="without privacy accounting"):
        make_trainer(tmp_path, steps=3, privacy=private()).fit(
            Regression(), datamodule=Records(N), ckpt_path=tmp_path / "plain.ckpt", weights_only=False
        )


# --- refusals: one sentence, before any private row is read -----------------------------------------


class Unreadable(Records):
    """A data set whose rows must not be touched."""

    def synthetic_units(self, num_units):
        return [torch.rand(num_units, 4), torch.rand(num_units)]

    def train_dataloader(self):
        class Rows(Dataset):
            def __len__(self):
                return N

            def __getitem__(self, index):
                raise AssertionError("a private row was read")

        return DataLoader(Rows(), batch_size=8, shuffle=True)


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class ManualFromSetupOn(Regression):
    def setup(self, stage):
        self.automatic_optimization = False


class Plateau(Regression):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "x"}}


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Regression(), {"accumulate_grad_batches": 4}, "accumulate_grad_batches=4"),
        (Regression(), {"fast_dev_run": True}, "fast_dev_run"),
        (Regression(), {"limit_train_batches": 3}, "limit_train_batches=3"),
        (Regression(), {"overfit_batches": 2}, "overfit_batches"),
        (Regression(), {"precision": "16-mixed"}, "precision"),
        (Regression(extra=nn.BatchNorm1d(3)), {}, "'extra' is a BatchNorm1d"),
        (Regression(extra=nn.InstanceNorm1d(3, track_running_stats=True)), {}, "InstanceNorm1d"),
        (Manual(), {}, "optimizes manually"),
        (ManualFromSetupOn(), {}, "optimizes manually"),
        (Plateau(), {}, "ReduceLROnPlateau"),
    ],
)
def test_what_breaks_the_guarantee_is_refused(tmp_path, module, options, message):
    if options.get("precision") == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("Lightning refuses 16-mixed on a CPU by itself")
    trainer = make_trainer(tmp_path, steps=3, privacy=private(), **options)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, datamodule=Unreadable(N))
    assert not (tmp_path / "privacy.json").exists(), "nothing half-written"


def test_missing_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        make_trainer(tmp_path, steps=-1, privacy=private(), max_epochs=1).fit(
            Regression(), datamodule=Unreadable(N)
        )


def test_wrong_unit_count_and_own_sampler_are_refused(tmp_path):
    class Wrong(Records):
        def privacy_unit(self):
            return PrivacyUnit(name="record", num_units=N - 1, description="x")

    class Weighted(Records):
        def train_dataloader(self):
            sampler = torch.utils.data.WeightedRandomSampler([1.0] * N, N)
            return DataLoader(self.dataset, sampler=sampler)

    for data, message in ((Wrong(N), "declares 99 units"), (Weighted(N), "sampler of its own")):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, steps=3, privacy=private()).fit(Regression(), datamodule=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_epsilon": 1.0}, "exactly one"),
        ({"noise_multiplier": None}, "exactly one"),
        ({"noise_multiplier": None, "target_epsilon": 0.0}, "target_epsilon must be above 0"),
        ({"noise_multiplier": None, "target_epsilon": -1.0}, "target_epsilon must be above 0"),
        ({"noise_multiplier": None, "target_epsilon": float("nan")}, "target_epsilon must be above 0"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be"),
        ({"delta": 1.0}, "delta must be"),
        ({"delta": 0.0}, "delta must be"),
        ({"delta": "1/N"}, "neither a number nor '1/\\(N ln N\\)'"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be"),
        ({"expected_batch_size": 0}, "expected_batch_size must be"),
        ({"physical_batch_size": 0}, "physical_batch_size must be"),
        ({"reserve_steps": 0}, "reserve_steps must be"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        private(**options)


def test_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="between 1 and the 100 units"):
        make_trainer(tmp_path, steps=3, privacy=private(expected_batch_size=101)).fit(
            Regression(), datamodule=Unreadable(N)
        )


def test_step_without_a_loss_is_refused(tmp_path):
    class Skips(Regression):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(ValueError, match="it returned no loss"):
        make_trainer(tmp_path, steps=3, privacy=private()).fit(Skips(), datamodule=Unreadable(N))
    unseen = private(accept={"fails": "to see what the step itself says"})
    with pytest.raises(RuntimeError, match="gave no loss"):
        make_trainer(tmp_path, steps=3, privacy=unseen).fit(Skips(), datamodule=Records(N))


def test_delta_above_one_over_n_needs_a_reason_that_the_ledger_keeps(tmp_path, ledger_path):
    with pytest.raises(ValueError, match="above 1 / 100 units"):
        make_trainer(tmp_path, steps=1, privacy=private(delta=0.05)).fit(
            Regression(), datamodule=Unreadable(N)
        )
    privacy = private(delta=0.05, accept={"delta": "a test of the accounting"})
    make_trainer(tmp_path, steps=1, privacy=privacy).fit(Regression(), datamodule=Records(N))
    (entry,) = [entry for entry in Ledger(ledger_path).entries("records") if entry.kind == "override"]
    assert "a test of the accounting" in entry.detail["reason"]
    (accepted,) = json.loads((tmp_path / "privacy.json").read_text())["accepted_findings"]
    assert accepted["code"] == "delta"


def test_the_report_of_a_running_fit_is_never_below_what_was_charged(tmp_path, ledger_path):
    """As a killed process leaves it: read between any two hooks, at the end of and within reservations."""
    found = []

    def look() -> None:
        report = json.loads((tmp_path / "privacy.json").read_text())
        ledger = Ledger(ledger_path)
        charged = sum(event.steps for event in ledger.events("records", unit="record"))
        found.append((report["steps_charged"], charged))
        assert report["epsilon_spent"] >= ledger.epsilon("records", unit="record") * (1 - 1e-6)
        assert ledger.contains(report["ledger_seq"], report["ledger_hash"])

    class Looks(Regression):
        def on_train_batch_start(self, *_):
            if (tmp_path / "privacy.json").exists():  # not yet where the preflight tries the hooks
                look()

        def on_train_batch_end(self, *_):
            if (tmp_path / "privacy.json").exists():
                look()

    make_trainer(tmp_path, steps=7, privacy=private(reserve_steps=3)).fit(Looks(), datamodule=Records(N))
    assert {reported - charged for reported, charged in found} == {0}
    assert [reported for reported, _ in found][::2] == [3, 3, 3, 6, 6, 6, 7]
    look()
    assert found[-1] == (7, 7)
