"""Schedules, parametrisations and the per-example loss."""

import pytest
import torch
from torch import Tensor

from lightning_dp.diffusion.objective import draw_timesteps, per_example_loss
from lightning_dp.diffusion.prediction import Epsilon, Prediction, Sample, Velocity
from lightning_dp.diffusion.schedule import Cosine, Linear, NoiseSchedule

PREDICTIONS = [Epsilon(), Velocity(), Sample()]


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(num_steps=50, beta_end=0.3)])
def test_schedule_goes_from_almost_clean_to_almost_noise(schedule):
    assert torch.all(schedule.alphas_cumprod.diff() < 0)
    assert schedule.alphas_cumprod[0] > 0.999
    assert schedule.alphas_cumprod[-1] < 1e-3
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0, 30]), ndim=3)
    assert alpha.shape == (2, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2, 1, 1))


def test_schedule_refuses_impossible_betas():
    with pytest.raises(ValueError, match=r"beta_start is 0\.5"):
        Linear(beta_start=0.5, beta_end=0.1)
    with pytest.raises(ValueError, match="betas of shape"):
        NoiseSchedule(torch.tensor([0.1, 1.5]))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_gives_back_the_clean_sample(prediction):
    clean, noise = torch.randn(2, 4, 5).unbind()
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    target = prediction.target(clean, noise, alpha=alpha, sigma=sigma)
    back = prediction.clean(target, alpha * clean + sigma * noise, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(back, clean)


def _loss(output: Tensor, target: Tensor, *, mask: Tensor, gamma: float | None = None, **options) -> Tensor:
    prediction: Prediction = options.get("prediction", Velocity())
    snr = options.get("snr", torch.ones(len(output)))
    return per_example_loss(output, target, mask=mask, snr=snr, prediction=prediction, min_snr_gamma=gamma)


def test_loss_is_normalised_by_each_examples_own_mask():
    output, target = torch.randn(2, 3, 8, 2).unbind()
    mask = torch.rand(3, 8, 2) < torch.tensor([0.1, 0.5, 1.0])[:, None, None]
    mask[:, 0] = True
    loss = _loss(output, target, mask=mask)
    for example in range(3):
        chosen = mask[example]
        expected = (output[example][chosen] - target[example][chosen]).square().mean()
        torch.testing.assert_close(loss[example], expected)


def test_loss_of_a_batch_equals_each_example_alone():
    output, target = torch.randn(2, 5, 8, 2).unbind()
    mask = torch.rand(5, 8, 2) < 0.5
    together = _loss(output, target, mask=mask)
    for i in range(5):
        alone = _loss(output[i : i + 1], target[i : i + 1], mask=mask[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def test_unmasked_positions_have_neither_value_nor_gradient():
    output = torch.zeros(2, 4, requires_grad=True)
    target = torch.tensor([[1.0, float("nan"), 1.0, float("inf")]] * 2)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    loss = _loss(output, target, mask=mask)
    loss.sum().backward()
    assert loss.tolist() == [1.0, 0.0]
    assert output.grad.tolist() == [[-1.0, 0.0, -1.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights_the_clean_error_alike_whatever_is_predicted(prediction):
    schedule = Cosine()
    timesteps = torch.tensor([100, 500, 900])
    alpha, sigma = schedule.alpha_sigma(timesteps, ndim=2)
    clean, noise, output = torch.randn(3, 3, 6).unbind()
    noisy = alpha * clean + sigma * noise
    snr = (alpha / sigma).square().flatten()
    loss = _loss(
        output,
        prediction.target(clean, noise, alpha=alpha, sigma=sigma),
        mask=torch.ones(3, 6),
        gamma=5.0,
        snr=snr,
        prediction=prediction,
    )
    error = (prediction.clean(output, noisy, alpha=alpha, sigma=sigma) - clean).square().mean(dim=1)
    torch.testing.assert_close(loss, snr.clamp(max=5.0) * error, rtol=1e-4, atol=1e-5)


def test_timesteps_of_one_example_are_spread_and_uniform():
    torch.manual_seed(0)
    timesteps = draw_timesteps(20_000, draws=4, num_steps=100, device="cpu").view(-1, 4)
    assert timesteps.min() == 0
    assert timesteps.max() == 99
    counts = torch.bincount(timesteps[:, 2], minlength=100)
    assert (counts - 200).abs().max() < 80
    # One in each quarter.
    assert torch.equal((timesteps // 25).sort(dim=1).values, torch.arange(4).expand(20_000, 4))
