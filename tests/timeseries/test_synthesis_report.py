"""A synthesis from training to its scores and its picture, on simulated households."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.masks import BlackoutImputation, Synthesis
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import FixedScale
from lightning_dp.timeseries.synthesis_report import SynthesisReport

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(tmp_path, *, task) -> dict[str, float]:
    torch.manual_seed(0)
    data = HouseholdLoad(
        40, num_days=20, context_length=12, horizon=12, eval_stride=24, batch_size=16, task=task
    )
    net = SeriesDiT(
        AdaLNZero(), length=24, num_channels=1, num_covariates=7, patch_size=6, hidden_size=16, depth=1
    )
    module = TimeSeriesDiffusion(
        net,
        normaliser=FixedScale(mean=[0.5], std=[0.5]),
        bounds=(0.0, float("inf")),
        sampler=Sampler(num_steps=3),
        num_samples=2,
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=30,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    return result


def test_a_synthesis_is_compared_with_held_out_windows_and_drawn(tmp_path):
    result = run(tmp_path, task=Synthesis())
    assert 0 < result["test/marginal_distance"] < 1
    assert 0 < result["test/histogram_distance"] < 1
    assert 0 < result["test/autocorrelation_distance"] < 1
    assert 0 <= result["test/discriminative_score"] <= 0.5
    assert 0 < result["test/predictive_score"] < 2
    # Whatever train windows entered is marked.
    train_based = {name for name in result if "real_" in name or "train" in name or "copies" in name}
    assert len(train_based) == 6
    assert all(name.startswith("nonprivate/") for name in train_based)
    # After 30 steps a judge sees the difference.
    assert result["test/discriminative_score"] > 0.1
    assert not any(name.startswith("baseline/") for name in result)
    assert (tmp_path / "plots" / "synthesis.png").stat().st_size > 10_000
    assert not (tmp_path / "plots" / "imputation_fan.png").exists()


def test_an_imputation_has_its_own_report(tmp_path):
    result = run(tmp_path, task=BlackoutImputation(0.5))
    assert "baseline/day_profile_+_linear/mse" in result
    assert "test/marginal_distance" not in result
    assert (tmp_path / "plots" / "imputation_fan.png").stat().st_size > 10_000


def test_too_few_windows_are_refused():
    with pytest.raises(ValueError, match="max_windows is 2"):
        SynthesisReport(max_windows=2)


def test_windows_are_spread_over_the_whole_test_set():
    """Loaders are ordered by series: the first windows would all be of the first households."""
    report = SynthesisReport(max_windows=8)
    report.on_test_start(None, None)
    trainer = SimpleNamespace(num_test_batches=[4])
    module = SimpleNamespace(sample=lambda batch, num_samples: batch["values"][:, None])
    for number in range(4):
        shape = (10, 3, 1)
        observed = torch.ones(shape, dtype=torch.bool)
        observed[0, 1] = False  # a window with a gap can't be compared
        batch = {
            "values": torch.arange(10.0)[:, None, None].expand(shape) + 100 * number,
            "observed": observed,
            "target": torch.ones(shape, dtype=torch.bool),
            "covariates": torch.zeros(10, 3, 0),
        }
        report.on_test_batch_end(trainer, module, None, batch, number)
    kept = torch.cat(report._real)[:, 0, 0].tolist()
    assert kept == [1, 9, 101, 109, 201, 209, 301, 309]
