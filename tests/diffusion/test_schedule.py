"""Scaled-linear β's: those of diffusers to the last bit, and those of the formula."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from lightning_dp.diffusion.schedule import Linear, ScaledLinear


@pytest.mark.parametrize(("start", "end"), [(0.0015, 0.0195), (0.0015, 0.0155), (0.00085, 0.012)])
def test_scaled_linear_is_that_of_diffusers_and_of_the_formula(start, end):
    ours = ScaledLinear(beta_start=start, beta_end=end)
    theirs = DDIMScheduler(1000, beta_start=start, beta_end=end, beta_schedule="scaled_linear")
    assert ours.num_steps == 1000
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=0, atol=1e-6)
    betas = np.linspace(np.sqrt(start), np.sqrt(end), 1000) ** 2
    np.testing.assert_allclose(ours.betas.double(), betas, rtol=1e-6)
    np.testing.assert_allclose(ours.alphas_cumprod.double(), np.cumprod(1 - betas), rtol=0, atol=1e-6)
    alpha, sigma = ours.alpha_sigma(torch.tensor([0, 999]), ndim=4)
    np.testing.assert_allclose(alpha.flatten() ** 2 + sigma.flatten() ** 2, 1, atol=1e-6)


def test_it_is_not_the_linear_one():
    """Another name for the same ends would be within 1e-6 of it."""
    gap = ScaledLinear().betas - Linear(beta_start=0.0015, beta_end=0.0195).betas
    assert float(gap.abs().max()) > 1e-3


def test_ends_that_are_none():
    with pytest.raises(ValueError, match=r"ScaledLinear\.beta_start is 0\.02 and beta_end 0\.01"):
        ScaledLinear(beta_start=0.02, beta_end=0.01)
