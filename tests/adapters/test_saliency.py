"""A choice of matrices is paid for once, belongs to the state, and trains exactly what was chosen."""

import json
import math
from pathlib import Path

import pytest
import torch
from adapter_support import copied, fit, moved, small_module
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from lightning_dp.adapters.output_head import OutputHead
from lightning_dp.adapters.saliency import Saliency, SaliencyLoRA
from lightning_dp.adapters.scores.random_score import RandomScore
from lightning_dp.adapters.scores.vote import Vote
from lightning_dp.adapters.several import Several
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.ledger import Ledger


def chosen_weights(adapter: SaliencyLoRA) -> set[str]:
    """Parameters of the chosen pairs, as a LightningModule names them."""
    return {
        f"net.{matrix.path}.lora_{ab}.{matrix.part or 'default'}.weight"
        for matrix, chosen in zip(adapter.selection.matrices, adapter.selection.chosen.tolist(), strict=True)
        if chosen
        for ab in "AB"
    }


class Watch(Callback):
    """What had a gradient when the optimizer stepped."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        self.stepped = {name for name, p in pl_module.named_parameters() if p.grad is not None}
        self.known = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]


class Forgets(Callback):
    """The published code's defect: an `out` matrix is selected and its adapter never trains."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if ".out." in name:
                parameter.requires_grad_(False)


def trains_what_it_chose(adapter: SaliencyLoRA, folder: Path, *callbacks: Callback, **privacy) -> bool:
    """Whether all chosen matrices, and nothing else, are different after two steps."""
    module = small_module(adapter, depth=2)
    before = copied(module)
    fit(module, folder, callbacks=callbacks, **privacy)
    return moved(module, before) == chosen_weights(adapter)


# All but one of eight, whatever the noise: one of the two `out` matrices is always chosen.
ALMOST_ALL = {"ratio": 0.9, "noise_multiplier": 2.0}


def test_every_chosen_matrix_trains_and_no_other_moves(tmp_path):
    adapter, watch = SaliencyLoRA(**ALMOST_ALL), Watch()
    assert trains_what_it_chose(adapter, tmp_path, watch)
    chosen = {matrix["name"] for matrix in adapter.selection.report() if matrix["chosen"]}
    assert len(chosen) == 7
    assert chosen & {"blocks.0.attention.out", "blocks.1.attention.out"}
    assert watch.stepped == chosen_weights(adapter)
    assert len(watch.known) > len(watch.stepped), "the optimizer knows frozen ones, and leaves them alone"
    assert adapter.facts()["chosen_matrices"] == 7
    assert adapter.facts()["trainable_parameters"] == 7 * 2 * 4 * 16
    assert adapter.facts()["saliency_ratio"] == 0.9


def test_a_selected_matrix_that_stays_frozen_is_seen(tmp_path):
    assert not trains_what_it_chose(SaliencyLoRA(**ALMOST_ALL), tmp_path, Forgets())


def test_a_matrix_that_trains_unselected_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(SaliencyLoRA, "begin_fit", lambda self, module: None)
    assert not trains_what_it_chose(SaliencyLoRA(**ALMOST_ALL), tmp_path)


def test_beside_another_adapter(tmp_path):
    saliency = SaliencyLoRA(ratio=0.5, score=Vote(), noise_multiplier=1.0)
    module = small_module(Several(adapters=[saliency, OutputHead()]))
    before = copied(module)
    fit(module, tmp_path)
    head = {name for name in before if name.startswith("net.final.")}
    assert moved(module, before) == chosen_weights(saliency) | head
    assert module.facts()["adapter"] == "SaliencyLoRA+OutputHead"
    assert module.facts()["saliency_ratio"] == 0.5


# --- what it costs -------------------------------------------------------------------------------------


def test_selection_and_training_together_cost_the_target(tmp_path):
    adapter = SaliencyLoRA(ratio=0.5, budget_share=0.2)
    trainer = fit(small_module(adapter), tmp_path, target_epsilon=1.0, noise_multiplier=None)
    (private,) = (c for c in trainer.callbacks if isinstance(c, DifferentialPrivacy))
    (prior,) = private.plan.prior
    step = PoissonSampledDpEvent(10 / 24, GaussianDpEvent(private.plan.noise_multiplier))
    together = PLDAccountant().compose(GaussianDpEvent(prior.noise_multiplier))
    together.compose(SelfComposedDpEvent(step, 2))
    assert together.get_epsilon(1e-2) == pytest.approx(1.0, rel=1e-3)
    alone = PLDAccountant().compose(GaussianDpEvent(prior.noise_multiplier)).get_epsilon(1e-2)
    assert alone == pytest.approx(0.2, rel=1e-3)
    report = json.loads((tmp_path / "saliency.json").read_text())
    assert report["noise_multiplier"] == prior.noise_multiplier
    assert report["sensitivity"] == 0.01
    assert [matrix["chosen"] for matrix in report["matrices"]] == adapter.selection.chosen.tolist()
    assert (tmp_path / "plots" / "saliency.png").stat().st_size > 5000


class Untouchable(Dataset):
    """As many images as CelebA's train set has, none of which may be looked at."""

    def __len__(self) -> int:
        return 45_000

    def __getitem__(self, index: int) -> None:
        raise AssertionError("a private row was read")


class UntouchableData(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Untouchable(), batch_size=4, shuffle=True)


def test_a_target_that_the_selection_alone_exceeds_is_refused_before_any_row_is_read(tmp_path, ledger_path):
    """DP-SAPF's ε = 0.2 column: σ = 5 for the selection costs four times as much."""
    module = small_module(SaliencyLoRA(ratio=0.3, noise_multiplier=5.0))
    delta = 1 / (45_000 * math.log(45_000))
    private = DifferentialPrivacy(target_epsilon=0.2, delta=delta, expected_batch_size=4096)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_steps=1000, callbacks=[private], logger=False
    )
    with pytest.raises(ValueError, match=r"releases before training cost 0\.8\d* alone"):
        trainer.fit(module, datamodule=UntouchableData())
    assert not ledger_path.exists()


def test_a_share_of_a_budget_that_is_not_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not set: give SaliencyLoRA\.noise_multiplier"):
        fit(small_module(SaliencyLoRA(ratio=0.5, budget_share=0.1)), tmp_path)


def test_without_privacy_a_private_score_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has chosen nothing: GradNorm is a release of a private fit"):
        fit(small_module(SaliencyLoRA(ratio=0.5)), tmp_path, delta=None)


def test_a_free_score_costs_nothing_with_or_without_privacy(tmp_path, ledger_path):
    public = small_module(SaliencyLoRA(ratio=0.5, score=RandomScore()))
    before = copied(public)
    fit(public, tmp_path, delta=None)
    assert moved(public, before) == chosen_weights(public.adapter)
    fit(small_module(SaliencyLoRA(ratio=0.5, score=RandomScore())), tmp_path)
    assert not Ledger(ledger_path).events("pictures", unit="record", kind="release")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"ratio": 1.1}, "ratio is 1.1"),
        ({"ratio": 0.5, "noise_multiplier": 1.0, "budget_share": 0.1}, "leave one out"),
        ({"ratio": 0.5, "noise_multiplier": 0.0}, "noise_multiplier is 0.0"),
        ({"ratio": 0.5, "budget_share": 1.0}, "budget_share is 1.0"),
        ({"ratio": 0.5, "noise_draws": 0}, "noise_draws is 0"),
        ({"ratio": 0.5, "pieces": "blocks"}, "pieces is 'blocks'"),
        ({"ratio": 0.5, "rank": 0}, "rank is 0"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SaliencyLoRA(**options)


# --- once, and part of the state -----------------------------------------------------------------------


def test_a_resumed_fit_keeps_the_choice_and_neither_pays_nor_reads_again(tmp_path, ledger_path, monkeypatch):
    first = small_module(SaliencyLoRA(ratio=0.5, noise_multiplier=1.0), depth=2)
    initial = copied(first)
    reasons = {"private-monitor": "_Stop goes by the number of steps"}
    trainer = fit(first, tmp_path, steps=4, callbacks=(_Stop(after=2),), accept=reasons)
    checkpoint = tmp_path / "half.ckpt"
    assert trainer.global_step == 2
    monkeypatch.setattr(Saliency, "values", lambda *_: pytest.fail("read again"))
    second = small_module(SaliencyLoRA(ratio=0.5, noise_multiplier=1.0), depth=2)
    fit(second, tmp_path, steps=4, checkpoint=checkpoint)
    selections = [module.adapter.selection for module in (first, second)]
    assert torch.equal(selections[0].chosen, selections[1].chosen)
    assert torch.equal(selections[0].scores, selections[1].scores)
    assert moved(second, initial) == moved(first, initial) == chosen_weights(second.adapter)
    assert moved(second, copied(first)) == chosen_weights(second.adapter), "it trained on"
    assert len(Ledger(ledger_path).events("pictures", unit="record", kind="release")) == 1


class _Stop(Callback):
    def __init__(self, *, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: Trainer, *_) -> None:
        if trainer.global_step == self.after and not (trainer.default_root_dir / Path("half.ckpt")).exists():
            trainer.save_checkpoint(trainer.default_root_dir / Path("half.ckpt"))
            trainer.should_stop = True


def test_users_are_scored_as_one_unit(tmp_path, ledger_path):
    module = small_module(SaliencyLoRA(ratio=0.5, noise_multiplier=1.0))
    fit(module, tmp_path, users=12, expected_batch_size=6)
    assert module.adapter.selection.made
    assert len(Ledger(ledger_path).events("pictures", unit="user", kind="release")) == 1
