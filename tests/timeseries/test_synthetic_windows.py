"""Made-up windows stand in for train batches, and preflight can tell by them what a module does."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.data.synthetic import synthetic_windows
from lightning_dp.timeseries.masks import Mixture, PointImputation, Synthesis
from lightning_dp.timeseries.metrics import scored_positions
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean


@pytest.fixture(scope="module")
def data():
    return HouseholdLoad(
        12, num_days=7, windows_per_user=2, task=Mixture([PointImputation(0.2), Synthesis()])
    )


def test_they_have_the_form_of_a_train_batch_and_differ_between_units(data):
    data.setup()
    made_up = data.synthetic_units(13)
    real = next(iter(data.train_dataloader()))
    assert made_up.keys() == real.keys()
    for name, value in made_up.items():
        assert value.dtype == real[name].dtype
        assert value.shape == (26, *real[name].shape[1:])
    assert made_up["values"][~made_up["observed"]].eq(0).all()
    counts = made_up["observed"].sum(dim=(1, 2))
    assert len(counts.unique()) > 10, "units that are all observed alike would hide a count over the batch"
    assert made_up["covariates"].abs().max() <= 1


def test_they_are_the_same_every_time_and_leave_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    facts = {"length": 12, "horizon": 4, "num_channels": 2, "num_covariates": 0, "task": PointImputation(0.3)}
    first, second = (synthetic_windows(5, **facts) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)
    forecast = synthetic_windows(5, **{**facts, "task": None})["target"]
    assert forecast[:, -4:].all()
    assert not forecast[:, :-4].any()


class CountedInTheBatch(TimeSeriesDiffusion):
    """Divides by the targets of the whole batch, as CSDI's loss does."""

    def training_step(self, batch, batch_idx):
        count = scored_positions(batch).sum(dim=(1, 2))
        return (self.per_example_losses(batch) * count).sum() / count.sum()


@pytest.mark.parametrize("kind", [TimeSeriesDiffusion, CountedInTheBatch])
def test_preflight_tells_a_loss_that_counts_the_batch(tmp_path, data, kind):
    conditioning = DPAwareAdaLNZero(c_max=3.0)
    net = SeriesDiT(
        conditioning,
        length=120,
        num_channels=1,
        num_covariates=7,
        hidden_size=8,
        depth=1,
        num_heads=2,
        dropout=0.1,
    )
    module = kind(net, normaliser=DayMean(steps_per_day=24), noise_draws=2)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=4)],
    )
    if kind is TimeSeriesDiffusion:
        trainer.fit(module, datamodule=data)
        assert trainer.global_step == 1
    else:
        with pytest.raises(ValueError, match=r"\[coupling\] training_step"):
            trainer.fit(module, datamodule=data)
