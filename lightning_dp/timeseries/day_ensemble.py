"""What a window's own days say about each hidden step, as the denoiser that a network starts from.

The values seen near a time of day, on any visible day of the window, are a good distribution of the value at
that time: better than one number, and free, for it is the window's own computation. Here it is in closed
form the denoiser of a diffusion, so that a network only has to learn what is left, and a network of zeros
already samples from it.

Shapes: B windows, L steps, C channels, S steps a day, P hidden steps, K values near one of them, n copies of
each window, R = B·n rows.
"""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from lightning_dp.diffusion.base_denoiser import BaseDenoiser
from lightning_dp.privacy.rows import any_unit
from lightning_dp.timeseries.normalise import Frame

_BROAD_WEIGHT = 0.1


class Ensemble(NamedTuple):
    """The values near each hidden step.

    Attributes:
        steps: (P,) which steps of the window some row has to predict.
        values: (B, P, C, K) in the frame of their window.
        log_weights: (B, P, C, K), −∞ for one that is not visible.
    """

    steps: Tensor
    values: Tensor
    log_weights: Tensor


@final
class DayEnsemble(BaseDenoiser[Ensemble]):
    """E[x_0 | x_t] if each hidden step were drawn from the visible values near its time of day.

    The distribution of a step is a mixture of normals of width `bandwidth` around these values, and of a
    tenth of a standard normal in the window's frame, which is all that there is where nothing is visible.
    Steps are independent: how they hang together is left to the network.

    Args:
        steps_per_day: S.
        reach: ≥ 0, steps before and after that count as near.
        bandwidth: > 0, in the window's frame.
    """

    def __init__(self, *, steps_per_day: int, reach: int = 2, bandwidth: float = 0.2) -> None:
        super().__init__()
        if steps_per_day < 1:
            raise ValueError(
                f"steps_per_day is {steps_per_day}, but a day has at least one step: 24 for hourly data."
            )
        if not 0 <= 2 * reach < steps_per_day:
            raise ValueError(
                f"reach is {reach}, but it has to lie between 0 and half a day of {steps_per_day} steps: an "
                "hour or two are usual."
            )
        if not bandwidth > 0:
            raise ValueError(f"bandwidth is {bandwidth}, but it has to be above 0: try 0.2.")
        self.steps_per_day = steps_per_day
        self.reach = reach
        self.bandwidth = bandwidth

    def of(self, values: Tensor, visible: Tensor, *, frame: Frame, target: Tensor) -> Ensemble:
        """The ensemble of windows.

        Args:
            values: (B, L, C) original units.
            visible: (B, L, C) bool, True where a value may be used.
            frame: of these windows.
            target: (B, L, C) bool, True where something is to be predicted.
        """
        length, day = values.shape[1], self.steps_per_day
        steps = any_unit(target.any(dim=2))  # (P,)
        seen = torch.where(visible, values, torch.nan)
        seen = nn.functional.pad(seen, (0, 0, 0, -length % day), value=torch.nan)
        by_day = seen.unflatten(1, (-1, day))  # (B, days, S, C)
        shifts = range(-self.reach, self.reach + 1)
        near = torch.cat([by_day.roll(shift, dims=2) for shift in shifts], dim=1)  # (B, K, S, C)
        near = near[:, :, steps % day].movedim(1, -1)  # (B, P, C, K)
        center = frame.center[:, steps, :, None]  # (B, P, C, 1)
        scale = frame.scale.expand_as(frame.center)[:, steps, :, None]  # (B, P, C, 1)
        known = ~near.isnan()
        count = known.sum(dim=-1, keepdim=True).clamp_min(1)  # (B, P, C, 1)
        log_weights = torch.where(known, ((1 - _BROAD_WEIGHT) / count).log(), -torch.inf)
        return Ensemble(steps, torch.where(known, (near - center) / scale, 0.0), log_weights)

    def clean(self, noisy: Tensor, known: Ensemble, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t] at the hidden steps, 0 elsewhere.

        Args:
            noisy: (R, L, C) x_t, the n copies of a window consecutive.
            known: of the B windows.
            alpha: (R or 1, 1, 1).
            sigma: (R or 1, 1, 1) > 0.
        """
        steps, values, log_weights = known
        windows = len(values)
        x = noisy[:, steps].unflatten(0, (windows, -1))  # (B, n, P, C)
        a, s = (v.expand(len(noisy), 1, 1).unflatten(0, (windows, -1)) for v in (alpha, sigma))
        # Of a component N(d, h²): x_t is N(α·d, v) with v = α²h² + σ², and E[x_0 | x_t] is
        # d + αh²/v·(x_t − α·d). Terms that all components share, such as x_t²/v, cancel in their shares.
        v = (a * self.bandwidth).square() + s.square()
        points = values[:, None]  # (B, 1, P, C, K)
        fixed = log_weights[:, None] - 0.5 * (a.square() / v)[..., None] * points.square()
        scores = torch.addcmul(fixed, (a / v * x)[..., None], points)  # (B, n, P, C, K)
        total = scores.logsumexp(dim=-1)  # (B, n, P, C)
        near = (torch.exp_(scores.sub_(total.clamp_min(-1e30)[..., None])) * points).sum(dim=-1)
        near = near + a * self.bandwidth**2 / v * (x - a * near)
        broad = a.square() + s.square()
        odds = (
            total - math.log(_BROAD_WEIGHT) + 0.5 * (x.square() / broad - x.square() / v + (broad / v).log())
        )
        found = torch.lerp(a / broad * x, near, odds.sigmoid()).flatten(0, 1)  # (R, P, C)
        return torch.zeros_like(noisy).index_copy(1, steps, found)
