"""The denoiser of a window's own days: a mixture's posterior mean, of its own window alone."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from lightning_dp.diffusion.prediction import Epsilon, Sample, Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.day_ensemble import DayEnsemble
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean

DAY = 4


def _windows(count: int = 3, days: int = 5):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(count, days * DAY, 1, generator=generator)
    visible = torch.rand(values.shape, generator=generator) > 0.2
    visible[:, -DAY:] = False
    visible[-1] = False  # a window of which nothing is known
    target = torch.zeros_like(visible)
    target[:, -DAY:] = True
    return values, visible, target, DayMean(steps_per_day=DAY).frame(values, visible)


def _mixture(ensemble, row: int, step: int, *, bandwidth: float, alpha: float, sigma: float):
    """p(x_t) of one step, with what of its mean is α·E[x_0 | component]."""
    known = ensemble.log_weights[row, step, 0].isfinite()
    means = torch.cat([ensemble.values[row, step, 0][known], torch.zeros(1)])
    widths = torch.cat([torch.full((int(known.sum()),), bandwidth), torch.ones(1)])
    weights = torch.cat([ensemble.log_weights[row, step, 0][known].exp(), torch.tensor([0.1])])
    return MixtureSameFamily(
        Categorical(weights), Normal(alpha * means, (alpha**2 * widths**2 + sigma**2).sqrt())
    )


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_it_is_the_posterior_mean_of_the_mixture(fraction):
    values, visible, target, frame = _windows()
    days = DayEnsemble(steps_per_day=DAY, reach=1, bandwidth=0.3)
    ensemble = days.of(values, visible, frame=frame, target=target)
    alpha, sigma = torch.tensor([[[1 - fraction**2]]]).sqrt(), torch.full((1, 1, 1), fraction)
    noisy = torch.randn(6, values.shape[1], 1, generator=torch.Generator().manual_seed(1))
    found = days.clean(noisy, ensemble, alpha=alpha, sigma=sigma)
    assert not found[:, :-DAY].any()
    for row in range(6):  # two copies of each window
        for step, place in enumerate(ensemble.steps):
            # Tweedie: E[x_0 | x_t] = (x_t + σ²·∇log p(x_t)) / α, by a derivative instead of our formula.
            x = noisy[row, place, 0].double().requires_grad_()
            mixture = _mixture(ensemble, row // 2, step, bandwidth=0.3, alpha=alpha.item(), sigma=fraction)
            score = torch.autograd.grad(mixture.log_prob(x), x)[0]
            expected = (x + fraction**2 * score) / alpha.item()
            torch.testing.assert_close(found[row, place, 0].double(), expected, rtol=1e-3, atol=2e-4)


def test_a_window_is_described_by_its_own_visible_values_near_the_hour():
    values, visible, target, frame = _windows()
    days = DayEnsemble(steps_per_day=DAY, reach=0)
    ensemble = days.of(values, visible, frame=frame, target=target)
    for step in range(DAY):
        seen = values[0, step::DAY, 0][visible[0, step::DAY, 0]]
        known = ensemble.log_weights[0, step, 0].isfinite()
        centre, scale = frame.center[0, -DAY + step, 0], frame.scale[0, 0, 0]
        torch.testing.assert_close(
            ensemble.values[0, step, 0][known].sort().values, ((seen - centre) / scale).sort().values
        )
        assert ensemble.log_weights[0, step, 0].exp().sum().item() == pytest.approx(0.9)
    assert not ensemble.log_weights[-1].isfinite().any()
    other = values.clone()
    other[1:] = 7.0
    other[0, -DAY:] = 9.0  # hidden
    again = days.of(other, visible, frame=DayMean(steps_per_day=DAY).frame(other, visible), target=target)
    torch.testing.assert_close(again.values[0], ensemble.values[0])


def test_samples_of_the_denoiser_alone_have_the_ensembles_distribution():
    values, visible, target, frame = _windows(1)
    values[0, : 2 * DAY], values[0, 2 * DAY :] = 0.0, 1.0  # two levels, two of four days each
    visible[:] = ~target
    frame = DayMean(steps_per_day=DAY).frame(values, visible)
    days = DayEnsemble(steps_per_day=DAY, reach=1, bandwidth=0.05)
    ensemble = days.of(values, visible, frame=frame, target=target)
    schedule, prediction = Cosine(), Velocity()

    def denoise(noisy, timesteps):
        alpha, sigma = schedule.alpha_sigma(timesteps[:1], ndim=3)
        clean = days.clean(noisy, ensemble, alpha=alpha, sigma=sigma)
        return prediction.output(clean, noisy, alpha=alpha, sigma=sigma)

    noise = torch.randn(2000, values.shape[1], 1, generator=torch.Generator().manual_seed(2))
    drawn = Sampler(num_steps=25).sample(denoise, noise, schedule=schedule, prediction=prediction)
    drawn = drawn[:, -DAY:] * frame.scale + frame.center[:, -DAY:]
    near_zero, near_one = ((drawn - level).abs() < 0.15 for level in (0.0, 1.0))
    assert near_zero.float().mean().item() == pytest.approx(0.46, abs=0.05)
    assert near_one.float().mean().item() == pytest.approx(0.46, abs=0.05)


def test_whatever_samples_or_forecasts_includes_it():
    """A module whose net is all zeros says what the days say: expectation, samples, guidance or not."""
    values, visible, target, frame = _windows()
    net = SeriesDiT(
        AdaLNZero(), length=values.shape[1], num_channels=1, num_covariates=1, patch_size=DAY, hidden_size=8
    )
    days = DayEnsemble(steps_per_day=DAY, reach=1)
    module = TimeSeriesDiffusion(
        net,
        normaliser=DayMean(steps_per_day=DAY),
        base_denoiser=days,
        condition_dropout=0.1,
        guidance_scale=2.0,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    covariates = torch.zeros(*values.shape[:2], 1)
    batch = Batch(values=values, observed=visible | target, target=target, covariates=covariates)
    ensemble = days.of(values, visible, frame=frame, target=target)

    def denoise(noisy, timesteps):
        alpha, sigma = module.schedule.alpha_sigma(timesteps[:1], ndim=3)
        clean = days.clean(noisy, ensemble, alpha=alpha, sigma=sigma)
        return module.prediction.output(clean, noisy, alpha=alpha, sigma=sigma)

    def in_units(clean):  # (B, n, L, C), the hidden steps
        return (clean * frame.scale[:, None] + frame.center[:, None])[:, :, -DAY:]

    alpha, sigma = module.schedule.alpha_sigma(torch.tensor([module.schedule.num_steps - 1]), ndim=3)
    clean = days.clean(torch.zeros_like(values), ensemble, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(module.expectation(batch)[:, -DAY:], in_units(clean[:, None])[:, 0])
    drawn = module.sample(batch, num_samples=2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(6, *values.shape[1:], generator=torch.Generator().manual_seed(0))
    hidden = target.repeat_interleave(2, dim=0)
    expected = module.sampler.sample(
        lambda noisy, timesteps: denoise(torch.where(hidden, noisy, 0.0), timesteps),
        noise,
        schedule=module.schedule,
        prediction=module.prediction,
    )
    torch.testing.assert_close(drawn[:, :, -DAY:], in_units(expected.unflatten(0, (3, 2))))


@pytest.mark.parametrize("prediction", [Epsilon(), Velocity(), Sample()])
def test_output_is_the_inverse_of_clean(prediction):
    generator = torch.Generator().manual_seed(3)
    clean, noisy = torch.randn(2, 5, 3, generator=generator)
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    output = prediction.output(clean, noisy, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(prediction.clean(output, noisy, alpha=alpha, sigma=sigma), clean)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps_per_day": 0}, "steps_per_day"),
        ({"steps_per_day": 4, "reach": 2}, "reach"),
        ({"steps_per_day": 24, "bandwidth": 0.0}, "bandwidth"),
    ],
)
def test_values_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=f"^{named} is"):
        DayEnsemble(**options)
