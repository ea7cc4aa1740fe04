"""Made-up windows for checks that run before any private row is read.

Shapes: B windows, L time steps, C channels, F covariates.
"""

import torch

from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.masks import Forecast, Mask

_LARGEST_GAP = 0.3


def synthetic_windows(
    num_windows: int, *, length: int, horizon: int, num_channels: int, num_covariates: int, task: Mask | None
) -> Batch:
    """A batch of noisy waves that differ in level, phase and how much of them was observed.

    Made of the arguments alone, and always the same for the same arguments but for a task's draws.

    Args:
        num_windows: B ≥ 1.
        length: L ≥ 1.
        horizon: ≥ 1, steps to forecast where there is no task.
        num_channels: C ≥ 1.
        num_covariates: F ≥ 0.
        task: what is to be predicted; None = the forecast of the last `horizon` steps.
    """
    generator = torch.Generator().manual_seed(0)
    one_each = (num_windows, 1, num_channels)
    steps = torch.arange(length)[:, None] / 24 * 2 * torch.pi  # (L, 1)
    phase = 2 * torch.pi * torch.rand(one_each, generator=generator)  # (B, 1, C)
    level = 1 + 2 * torch.rand(one_each, generator=generator)  # (B, 1, C)
    noise = torch.rand(num_windows, length, num_channels, generator=generator)  # (B, L, C)
    values = level * (1 + 0.5 * torch.sin(steps + phase) + 0.3 * noise)  # (B, L, C), > 0
    share = _LARGEST_GAP * torch.rand(num_windows, 1, 1, generator=generator)  # (B, 1, 1)
    observed = torch.rand(values.shape, generator=generator) >= share  # (B, L, C)
    # A task draws from torch's global generator, as in training: seeded here, and put back.
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)  # not those of devices
        target = (task or Forecast(horizon)).draw(num_windows, length=length, num_channels=num_channels)
    return Batch(
        values=torch.where(observed, values, 0.0),
        observed=observed,
        target=target,
        covariates=2 * torch.rand(num_windows, length, num_covariates, generator=generator) - 1,
    )
