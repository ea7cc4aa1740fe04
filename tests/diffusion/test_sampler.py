"""The sampling loop against a Gaussian, whose perfect denoiser is known."""

import diffusers
import pytest
import torch
from torch import Tensor

from lightning_dp.diffusion.prediction import Epsilon, Prediction, Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine, Linear, NoiseSchedule

# diffusers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MEAN, STD = 2.0, 0.5


def _perfect(schedule: NoiseSchedule, prediction: Prediction):
    def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(timesteps, ndim=noisy.ndim)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        clean = MEAN + gain * (noisy - alpha * MEAN)
        return prediction.target(clean, (noisy - alpha * clean) / sigma, alpha=alpha, sigma=sigma)

    return denoise


def _draw(sampler: Sampler, *, schedule: NoiseSchedule, prediction: Prediction, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(20_000, 1, generator=generator)
    return sampler.sample(
        _perfect(schedule, prediction), noise, schedule=schedule, prediction=prediction, generator=generator
    )


@pytest.mark.parametrize("prediction", [Epsilon(), Velocity()])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
@pytest.mark.parametrize(
    ("scheduler", "num_steps"),
    [
        (diffusers.DDIMScheduler(), 50),
        (diffusers.DPMSolverMultistepScheduler(), 20),
        (diffusers.UniPCMultistepScheduler(), 20),
        (diffusers.DEISMultistepScheduler(), 20),
        (diffusers.HeunDiscreteScheduler(), 100),  # its timesteps are floats
        (diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), 50),  # and these not whole
    ],
)
def test_schedulers_recover_a_gaussian_outside_the_unit_box(scheduler, num_steps, schedule, prediction):
    samples = _draw(Sampler(scheduler, num_steps=num_steps), schedule=schedule, prediction=prediction)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert samples.std().item() == pytest.approx(STD, rel=0.08)


@pytest.mark.parametrize("prediction", [Epsilon(), Velocity()])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_pndm_recovers_the_gaussian_more_coarsely(schedule, prediction):
    """Its linear multistep start is first order, which pulls the mean by a few hundredths at 50 steps."""
    sampler = Sampler(diffusers.PNDMScheduler(skip_prk_steps=True), num_steps=50)
    samples = _draw(sampler, schedule=schedule, prediction=prediction)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.08)
    assert samples.std().item() == pytest.approx(STD, rel=0.08)


def test_the_default_needs_few_steps():
    samples = _draw(Sampler(), schedule=Cosine(), prediction=Velocity())
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert samples.std().item() == pytest.approx(STD, rel=0.2)


def test_steps_uniform_in_log_snr_survive_rounding_to_equal_timesteps():
    sampler = Sampler(diffusers.DPMSolverMultistepScheduler(use_lu_lambdas=True), num_steps=10)
    samples = _draw(sampler, schedule=Cosine(num_steps=200), prediction=Velocity())
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert samples.std().item() == pytest.approx(STD, rel=0.08)


def test_ancestral_sampling_follows_the_generator():
    sampler = Sampler(diffusers.DDIMScheduler(), num_steps=10, eta=1.0)
    draws = [_draw(sampler, schedule=Linear(), prediction=Velocity(), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_users_scheduler_is_left_as_it_was():
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=3, beta_end=0.5)
    config = dict(scheduler.config)
    _draw(Sampler(scheduler, num_steps=4), schedule=Linear(), prediction=Velocity())
    assert dict(scheduler.config) == config


def test_impossible_samplers_are_refused():
    with pytest.raises(ValueError, match="num_steps is 0"):
        Sampler(num_steps=0)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler"):
        _draw(Sampler(diffusers.FlowMatchEulerDiscreteScheduler()), schedule=Linear(), prediction=Velocity())
