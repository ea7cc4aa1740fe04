"""The time-series LightningModule and its normalisers."""

import pytest
import torch
from follow_steps import sites_of
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dp.callbacks.ema import EMA
from lightning_dp.diffusion.prediction import Epsilon, Sample, Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.conditioning.modulation import Conditioning
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.row_losses import mean_loss
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.bridge import Bridge
from lightning_dp.timeseries.masks import BlackoutImputation, Interpolation, PointImputation, Synthesis
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean, FixedScale, visible_mask

# diffusers' own use of numpy, and autograd's advice on hooks of modules whose inputs need no gradient.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook"),
]

LENGTH, CHANNELS, DAY, HORIZON = 12, 2, 3, 3


def _series(rows: int, *, seed: int = 0) -> Tensor:
    """Days that repeat up to noise, in units far from 1."""
    generator = torch.Generator().manual_seed(seed)
    day = torch.tensor([[0.0, 100.0], [5.0, 90.0], [10.0, 120.0]]).repeat(LENGTH // DAY, 1)
    return day + torch.tensor([1.0, 8.0]) * torch.randn(rows, LENGTH, CHANNELS, generator=generator)


def _batch(rows: int = 4, *, seed: int = 0) -> Batch:
    target = torch.zeros(rows, LENGTH, CHANNELS, dtype=torch.bool)
    target[:, -HORIZON:] = True
    return {
        "values": _series(rows, seed=seed),
        "observed": torch.ones(rows, LENGTH, CHANNELS, dtype=torch.bool),
        "target": target,
        "covariates": torch.zeros(rows, LENGTH, 1),
    }


def _net(conditioning: Conditioning | None = None, **options) -> SeriesDiT:
    return SeriesDiT(
        conditioning or AdaLNZero(),
        length=LENGTH,
        num_channels=CHANNELS,
        num_covariates=1,
        patch_size=DAY,
        hidden_size=8,
        depth=1,
        num_heads=2,
        **options,
    )


def _module(*, trained: bool = True, **options) -> TimeSeriesDiffusion:
    torch.manual_seed(0)
    options = {"normaliser": DayMean(steps_per_day=DAY), "schedule": Cosine(num_steps=100)} | options
    module = TimeSeriesDiffusion(options.pop("net", None) or _net(), **options)
    if trained:  # zero-initialised layers hide mistakes
        for parameter in module.net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return module


class _Data(LightningDataModule):
    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.metric_mean, self.metric_std = torch.tensor([5.0, 100.0]), torch.tensor([4.0, 15.0])

    def _loader(self, seed: int) -> DataLoader:
        batch = _batch(8, seed=seed)
        return DataLoader([{k: v[i] for k, v in batch.items()} for i in range(8)], batch_size=self.batch_size)

    def train_dataloader(self) -> DataLoader:
        return self._loader(0)

    def val_dataloader(self) -> DataLoader:
        return self._loader(1)

    def test_dataloader(self) -> DataLoader:
        return self._loader(2)


def _trainer(tmp_path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, **(quiet | options))


def test_day_mean_is_the_mean_of_the_visible_days_at_that_hour():
    values = torch.tensor([1.0, 10.0, 3.0, 20.0, 99.0, 99.0]).view(1, 6, 1)
    visible = torch.tensor([1, 1, 1, 1, 0, 0]).view(1, 6, 1).bool()
    frame = DayMean(steps_per_day=2, floor=1e-3, residual_scale=False).frame(values, visible)
    assert frame.center.flatten().tolist() == [2.0, 15.0, 2.0, 15.0, 2.0, 15.0]
    spread = torch.tensor([1.0, 10.0, 3.0, 20.0]).std(correction=0)
    torch.testing.assert_close(frame.scale.squeeze(), spread, rtol=1e-4, atol=0)
    residual = DayMean(steps_per_day=2, floor=1e-3).frame(values, visible)
    torch.testing.assert_close(residual.scale.item(), (26 / 2) ** 0.5, rtol=1e-4, atol=0)


def test_day_mean_with_missing_values_falls_back_to_the_window_then_to_zero():
    values = torch.tensor([[1.0, 7.0], [0.0, 7.0], [3.0, 7.0], [0.0, 7.0]])[None]
    visible = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 0]])[None].bool()
    frame = DayMean(steps_per_day=2, floor=0.5, residual_scale=False).frame(values, visible)
    assert frame.center[0, :, 0].tolist() == [2.0, 2.0, 2.0, 2.0]
    assert frame.center[0, :, 1].tolist() == [0.0] * 4
    assert frame.scale[0, 0].tolist() == pytest.approx([1.25**0.5, 0.5])


def test_a_constant_window_has_the_floor_as_its_scale():
    values = torch.full((1, 4, 2), 3.0)
    frame = DayMean(steps_per_day=2, floor=[0.1, 0.2]).frame(values, torch.ones(1, 4, 2).bool())
    assert frame.scale[0, 0].tolist() == pytest.approx([0.1, 0.2])


def test_a_window_that_is_no_whole_number_of_days_is_fine():
    values = torch.arange(5.0).view(1, 5, 1)
    frame = DayMean(steps_per_day=3, floor=1.0).frame(values, torch.ones(1, 5, 1).bool())
    assert frame.center.flatten().tolist() == [1.5, 2.5, 2.0, 1.5, 2.5]


def test_fixed_scale_uses_its_constants():
    frame = FixedScale(mean=[1.0, 2.0], std=[3.0, 4.0]).frame(
        torch.randn(2, 4, 2), torch.ones(2, 4, 2).bool()
    )
    assert frame.center[1, 2].tolist() == [1.0, 2.0]
    assert frame.scale[1, 0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("prediction", [Velocity(), Epsilon(), Sample()])
def test_an_examples_loss_does_not_depend_on_the_others(prediction):
    module = _module(prediction=prediction, noise_draws=3)
    batch = _batch()
    torch.manual_seed(1)
    before = module.per_example_losses(batch)
    batch["values"][1:] *= 50
    batch["observed"][2, :5] = False
    torch.manual_seed(1)
    after = module.per_example_losses(batch)
    assert before.shape == (4,)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1:], after[1:])


@pytest.mark.parametrize(
    "task", [PointImputation(0.5), BlackoutImputation(0.5), Interpolation(3), Synthesis()], ids=str
)
def test_any_mask_trains_and_samples(task):
    module, batch = _module(normaliser=Bridge(steps_per_day=DAY), sampler=Sampler(num_steps=3)), _batch()
    batch["target"] = task.draw(4, length=LENGTH, num_channels=CHANNELS)
    module.per_example_losses(batch).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())
    samples = module.sample(batch, 2)
    visible = visible_mask(batch)[:, None].expand_as(samples)
    assert torch.isfinite(samples).all()
    assert torch.equal(samples[visible], batch["values"][:, None].expand_as(samples)[visible])
    assert samples[~visible].std() > 0


def test_condition_dropout_hides_the_condition_of_some_examples_each_on_its_own():
    module, batch = _module(condition_dropout=0.5), _batch(200)
    changed = {**batch, "covariates": batch["covariates"] + 1}
    losses = []
    for some in (batch, changed):
        torch.manual_seed(1)
        losses.append(module.per_example_losses(some))
    untouched = (losses[0] == losses[1]).float().mean().item()
    assert untouched == pytest.approx(0.5, abs=0.12)
    changed["values"] = batch["values"].clone()
    changed["values"][1:] *= 50
    torch.manual_seed(1)
    others = module.per_example_losses({**changed, "covariates": batch["covariates"]})
    assert torch.equal(losses[0][0], others[0])


def test_guidance_extrapolates_from_the_unconditional_samples():
    """One step of an x_0-net: guided − unconditional is w times conditional − unconditional."""
    batch = _batch()
    batch["target"][:] = True
    batch["covariates"] = torch.randn(4, LENGTH, 1)
    draws = {}
    for scale in (0.0, 1.0, 3.0):
        module = _module(
            prediction=Sample(),
            sampler=Sampler(num_steps=1),
            normaliser=FixedScale(mean=[0.0, 0.0], std=[1.0, 1.0]),
            condition_dropout=0.1,
            guidance_scale=scale,
        )
        draws[scale] = module.sample(batch, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws[3.0] - draws[0.0], 3 * (draws[1.0] - draws[0.0]), atol=1e-4, rtol=1e-4)
    assert (draws[1.0] - draws[0.0]).abs().max() > 1e-3
    changed = {**batch, "covariates": -batch["covariates"]}
    module.guidance_scale = 0.0
    assert torch.equal(module.sample(changed, 2, torch.Generator().manual_seed(0)), draws[0.0])


def test_training_loss_is_the_mean_of_the_examples():
    module, batch = _module(noise_draws=2), _batch()
    module.log = lambda *args, **kwargs: None
    torch.manual_seed(1)
    losses = module.per_example_losses(batch)
    torch.manual_seed(1)
    step = module.training_step(batch, 0)
    torch.testing.assert_close(step["loss"], losses.mean())
    # One for each row that the layers see, those of an example in one piece.
    rows = step["losses"].unflatten(0, (-1, module.rows_per_example))
    torch.testing.assert_close(rows, losses[:, None].expand_as(rows))
    torch.testing.assert_close(mean_loss(step), losses.mean())


def test_hidden_and_missing_values_reach_neither_the_net_nor_the_loss():
    module, batch = _module(), _batch()
    batch["observed"][:, [2, -1]] = False
    changed = {**batch, "values": batch["values"].clone()}
    changed["values"][:, [2, -1]] = 1e6
    losses = []
    for some in (batch, changed):
        torch.manual_seed(1)
        losses.append(module.per_example_losses(some))
    assert torch.equal(*losses)
    changed["values"][batch["target"]] = -1e6
    unknown = ~visible_mask(batch)
    assert torch.equal(module.expectation(batch)[unknown], module.expectation(changed)[unknown])


def test_an_example_with_nothing_to_score_has_loss_and_gradient_zero():
    module, batch = _module(), _batch(1)
    batch["observed"][:] = False
    loss = module.per_example_losses(batch)
    loss.sum().backward()
    assert loss.item() == 0.0
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("channel_independent", [True, False])
def test_rows_of_one_example_are_consecutive_in_every_layer(channel_independent):
    """What per-unit clipping reads: example i owns rows [i·R, (i+1)·R) of every layer's output gradient."""
    module = _module(net=_net(channel_independent=channel_independent), noise_draws=3)
    rows = module.rows_per_example
    assert rows == 3 * (CHANNELS if channel_independent else 1)
    gradients: list[Tensor] = []
    for layer in module.net.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_full_backward_hook(lambda _, __, outputs: gradients.append(outputs[0]))
    for example in range(4):
        gradients.clear()
        module.per_example_losses(_batch())[example].backward()
        for gradient in gradients:
            assert len(gradient) == 4 * rows
            others = torch.ones(4 * rows).bool()
            others[example * rows : (example + 1) * rows] = False
            assert gradient[others].abs().max() == 0
        assert max(g.abs().max() for g in gradients) > 0


@pytest.mark.parametrize("engine_class", [Materialised, BookKeeping])
@pytest.mark.parametrize("channel_independent", [True, False])
@pytest.mark.parametrize("units", [1, 4])
def test_clipping_engines_find_each_examples_own_gradient(engine_class, channel_independent, units):
    """Through every layer of the real net, K draws and channels folded into rows included."""
    conditioning = DPAwareAdaLNZero(c_max=0.5)
    module = _module(net=_net(conditioning, channel_independent=channel_independent), noise_draws=2)
    batch, max_grad_norm = _batch(units), 0.3
    expected = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    norms = []
    for example in range(units):
        module.zero_grad()
        torch.manual_seed(1)
        module.per_example_losses(batch)[example].backward()
        gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
        norms.append(torch.stack([g.norm() for g in gradients.values()]).norm())
        for name, gradient in gradients.items():
            expected[name] += gradient * (max_grad_norm / norms[-1]).clamp(max=1.0)
    assert min(norms) > max_grad_norm

    module.zero_grad()
    engine = engine_class()
    engine.know(sites_of(module, lambda: module.per_example_losses(batch), units=units))
    engine.attach(module, function=Flat(), max_grad_norm=max_grad_norm)
    engine.expect(unit_weights=torch.ones(units), rows_per_unit=module.rows_per_example)
    torch.manual_seed(1)
    module.per_example_losses(batch).mean().backward()
    torch.testing.assert_close(engine.collect(), torch.stack(norms), rtol=1e-4, atol=1e-6)
    sums = engine.take()
    engine.detach()
    for name, total in expected.items():
        torch.testing.assert_close(sums[name], total, rtol=1e-4, atol=1e-6, msg=name)


def test_samples_are_reproducible_finite_and_leave_what_is_visible():
    module, batch = _module(sampler=Sampler(num_steps=4)), _batch()
    draws = [module.sample(batch, 5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert draws[0].shape == (4, 5, LENGTH, CHANNELS)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.isfinite(draws[0]).all()
    visible = visible_mask(batch)[:, None].expand_as(draws[0])
    assert torch.equal(draws[0][visible], batch["values"][:, None].expand_as(draws[0])[visible])


def test_sampling_in_small_pieces_keeps_every_window_in_its_place():
    """With no x_t in the net, all samples of a window are alike and are the net's own answer."""
    module, batch = _module(prediction=Sample(), sampler=Sampler(num_steps=2)), _batch(7)
    torch.nn.init.zeros_(module.net.embed_noisy.weight)
    torch.nn.init.zeros_(module.net.gains.weight)
    module.net.gains.bias.data = torch.tensor([1.0, 0.0])
    torch.nn.init.zeros_(module.net.timestep.outer.weight)
    module.max_sampling_rows = 9
    samples = module.sample(batch, 4)
    torch.testing.assert_close(samples, module.expectation(batch)[:, None].expand_as(samples))


def test_fit_test_and_predict_learn_the_residual(tmp_path):
    module = _module(
        trained=False,
        noise_draws=2,
        num_samples=8,
        sampler=Sampler(num_steps=4),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step / 50)),
    )
    data = _Data()
    trainer = _trainer(tmp_path, max_epochs=30, callbacks=[EMA(decay=0.9)])
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["nonprivate/train_loss"] < 1.5
    assert trainer.callback_metrics["nonprivate/val_mse"] < 1.0
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 / (1 + 60 / 50))
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    errors = {"test/mse", "test/rmse", "test/mae", "test/crps", "test/crps_sum"}
    assert set(result) == errors | {"test/r2", "test/coverage_50", "test/coverage_90"}
    assert all(0 < value < 1 for value in result.values())
    predictions = trainer.predict(module, data.test_dataloader())
    assert predictions[0]["samples"].shape == (4, 8, LENGTH, CHANNELS)
    assert predictions[0]["quantiles"].shape == (4, 5, LENGTH, CHANNELS)
    assert predictions[0]["quantiles"].diff(dim=1).min() >= 0
    assert predictions[0]["point"].shape == (4, LENGTH, CHANNELS)
    module.point = "median"
    (median, *_) = trainer.predict(module, data.test_dataloader())
    assert torch.equal(median["point"], median["samples"].median(dim=1).values)


@pytest.mark.parametrize("point", ["denoiser", "mean", "median"])
def test_point_forecast_of_an_untrained_net_is_the_mean_of_days(tmp_path, point):
    """An x_0-net that starts at zero predicts the centre, so the test error is the baseline's."""
    module = _module(trained=False, prediction=Sample(), point=point, num_samples=3)
    data = _Data()
    (result,) = _trainer(tmp_path).test(module, datamodule=data, verbose=False)
    batch = _batch(8, seed=2)
    frame = module.normaliser.frame(batch["values"], visible_mask(batch))
    error = ((frame.center - batch["values"]) / data.metric_std)[batch["target"]]
    assert result["test/mse"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert result["test/mae"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    truth = [(batch["values"] / data.metric_std)[..., c][batch["target"][..., c]] for c in range(CHANNELS)]
    around_mean = sum(float((own - own.mean()).square().sum()) for own in truth)
    assert result["test/r2"] == pytest.approx(1 - float(error.square().sum()) / around_mean, rel=1e-4)


def test_metrics_without_their_constants_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no metric_mean or metric_std"):
        _trainer(tmp_path).test(_module(), _Data().test_dataloader(), verbose=False)


def test_checkpoint_of_a_python_run_loads_with_the_net_handed_over(tmp_path):
    module, path = _module(noise_draws=3, num_samples=7), tmp_path / "model.ckpt"
    trainer = _trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=_Data())
    trainer.save_checkpoint(path)
    loaded = TimeSeriesDiffusion.load_from_checkpoint(
        path, net=_net(), normaliser=DayMean(steps_per_day=DAY), schedule=Cosine(num_steps=100)
    )
    assert (loaded.noise_draws, loaded.num_samples) == (3, 7)
    assert torch.equal(loaded.expectation(_batch()), module.expectation(_batch()))


def test_checkpoint_of_a_configured_run_loads_by_itself(tmp_path):
    conditioning = "lightning_dp.nets.conditioning.dp_aware_adaln_zero.DPAwareAdaLNZero"
    bound = {
        "class_path": "lightning_dp.nets.conditioning.bounds.SoftClampBand",
        "init_args": {"band": 0.25},
    }
    limits = {"c_max": 2.0, "beta_max": 0.5, "alpha_max": None, "bound": bound}
    net = {
        "conditioning": {"class_path": conditioning, "init_args": limits},
        "length": LENGTH,
        "num_channels": CHANNELS,
        "num_covariates": 1,
        "patch_size": DAY,
        "hidden_size": 8,
    }
    model = {
        "net": {"class_path": "lightning_dp.nets.series_dit.SeriesDiT", "init_args": net},
        "normaliser": {
            "class_path": "lightning_dp.timeseries.normalise.DayMean",
            "init_args": {"steps_per_day": DAY},
        },
        "sampler": {
            "class_path": "lightning_dp.diffusion.sampler.Sampler",
            "init_args": {"scheduler": {"class_path": "diffusers.DDIMScheduler"}, "num_steps": 3},
        },
        "prediction": {"class_path": "lightning_dp.diffusion.prediction.Epsilon"},
        "num_samples": 2,
    }
    cli = LightningCLI(
        TimeSeriesDiffusion,
        _Data,
        save_config_callback=None,
        run=False,
        args={
            "model": model,
            "trainer": {
                "accelerator": "cpu",
                "max_steps": 1,
                "logger": False,
                "enable_progress_bar": False,
                "default_root_dir": str(tmp_path),
            },
        },
    )
    assert isinstance(cli.model, LightningModule)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    path = tmp_path / "model.ckpt"
    cli.trainer.save_checkpoint(path)
    loaded = TimeSeriesDiffusion.load_from_checkpoint(path)
    modulation = loaded.net.blocks[0].modulation
    assert modulation.project.max_norm == 2.0
    assert (modulation.shift_bound.limit, modulation.shift_bound.band) == (0.5, 0.25)
    assert isinstance(modulation.gate_bound, torch.nn.Identity)
    assert type(loaded.sampler.scheduler).__name__ == "DDIMScheduler"
    assert torch.equal(loaded.expectation(_batch()), cli.model.expectation(_batch()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_draws": 0}, "noise_draws is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"point": "mode"}, "point is 'mode'"),
        ({"quantile_levels": (0.5, 1.0)}, "quantile_levels is"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _module(**options)


def test_bad_normalisers_are_refused():
    with pytest.raises(ValueError, match="steps_per_day is 0"):
        DayMean(steps_per_day=0)
    with pytest.raises(ValueError, match="floor is 0"):
        DayMean(steps_per_day=24, floor=0)
    with pytest.raises(ValueError, match="std is"):
        FixedScale(mean=[0.0], std=[0.0])
