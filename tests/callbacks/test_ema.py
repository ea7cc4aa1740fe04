"""The moving average of weights, under gradient accumulation, validation, checkpoints and resuming."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_dp.callbacks.ema import EMA


class _Line(LightningModule):
    """Weights after step n are known: SGD on a loss whose gradient is 1 for every weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        nn.init.zeros_(self.layer.weight)
        self.seen: dict[str, list[float]] = {"val": [], "test": [], "predict": []}

    @property
    def weight(self) -> float:
        return self.layer.weight[0, 0].item()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.layer.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen["val"].append(self.weight)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen["test"].append(self.weight)

    def predict_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen["predict"].append(self.weight)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layer.parameters(), lr=1.0)


def _loader() -> DataLoader:
    return DataLoader(torch.zeros(4, 1), batch_size=1)


def _trainer(tmp_path, ema: EMA, *, max_epochs: int = 1, callbacks: tuple[Callback, ...] = (), **options):
    return Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=[ema, *callbacks],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def _average(values: list[float], *, decay: float) -> float:
    average = 0.0
    for value in values:
        average = decay * average + (1 - decay) * value
    return average


def test_average_is_used_where_the_model_is_judged_and_training_goes_on_from_its_own_weights(tmp_path):
    model, ema = _Line(), EMA(decay=0.5, warmup=False)
    trainer = _trainer(tmp_path, ema, max_epochs=2)
    trainer.fit(model, _loader(), _loader())
    first, last = _average([1, 2, 3, 4], decay=0.5), _average([1, 2, 3, 4, 5, 6, 7, 8], decay=0.5)
    assert model.seen["val"] == pytest.approx([first] * 4 + [last] * 4)
    assert model.weight == pytest.approx(last)
    trainer.test(model, _loader(), verbose=False)
    trainer.predict(model, _loader(), return_predictions=False)
    assert model.seen["test"] == pytest.approx([last] * 4)
    assert model.seen["predict"] == pytest.approx([last] * 4)


class _AccumulateIrregularly(Callback):
    """Three physical batches make the first step and one the second, as a private loop may have it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        trainer.accumulate_grad_batches = 1 if batch_idx in (2, 3) else 10**9


def test_one_update_per_optimizer_step_whatever_the_number_of_batches(tmp_path):
    model, ema = _Line(), EMA(decay=0.5, warmup=False)
    _trainer(tmp_path, ema, callbacks=(_AccumulateIrregularly(),)).fit(model, _loader())
    # Gradients of accumulated batches add up, each divided by the number in force when it ran.
    assert ema.state_dict()["updates"] == 2


def test_warm_up_forgets_the_initial_weights_sooner(tmp_path):
    model = _Line()
    _trainer(tmp_path, EMA(decay=0.999)).fit(model, _loader())
    slow = _Line()
    _trainer(tmp_path, EMA(decay=0.999, warmup=False)).fit(slow, _loader())
    assert slow.weight < 0.02
    assert 2.0 < model.weight < 4.0


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path):
    whole, path = _Line(), tmp_path / "half.ckpt"
    _trainer(tmp_path, EMA(decay=0.9), max_epochs=4).fit(whole, _loader(), _loader())

    half = _Line()
    trainer = _trainer(tmp_path, EMA(decay=0.9), max_epochs=2)
    trainer.fit(half, _loader(), _loader())
    trainer.save_checkpoint(path)  # after training has ended and the average has moved in
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"]["layer.weight"][0, 0].item() == pytest.approx(half.weight)
    assert checkpoint["training_weights"]["layer.weight"][0, 0].item() == pytest.approx(8.0)

    resumed = _Line()
    _trainer(tmp_path, EMA(decay=0.9), max_epochs=4).fit(resumed, _loader(), _loader(), ckpt_path=path)
    assert resumed.weight == pytest.approx(whole.weight)
    assert resumed.seen["val"] == pytest.approx(whole.seen["val"][8:])


def test_a_checkpoint_is_tested_on_the_average_with_and_without_the_callback(tmp_path):
    model, path = _Line(), tmp_path / "end.ckpt"
    trainer = _trainer(tmp_path, EMA(decay=0.5), max_epochs=1)
    trainer.fit(model, _loader())
    trainer.save_checkpoint(path)
    for callback in (EMA(decay=0.5), Callback()):
        fresh = _Line()
        _trainer(tmp_path, callback).test(fresh, _loader(), ckpt_path=path, verbose=False)
        assert fresh.seen["test"] == pytest.approx([model.weight] * 4)


def test_a_second_fit_starts_its_own_average(tmp_path):
    ema = EMA(decay=0.5, warmup=False)
    _trainer(tmp_path, ema, max_epochs=3).fit(_Line(), _loader())
    fresh = _Line()
    _trainer(tmp_path, ema).fit(fresh, _loader())
    assert fresh.weight == pytest.approx(_average([1, 2, 3, 4], decay=0.5))


def test_only_trainable_weights_are_averaged(tmp_path):
    model = _Line()
    frozen = copy.deepcopy(model.frozen.state_dict())
    ema = EMA()
    _trainer(tmp_path, ema).fit(model, _loader())
    assert set(ema._average) == {"layer.weight"}
    assert torch.equal(model.frozen.weight, frozen["weight"])


def test_impossible_decay_is_refused():
    with pytest.raises(ValueError, match="decay is 1"):
        EMA(decay=1.0)
