"""From original units to what a network sees, and back, using public constants and the window's own context.

A window is normalised by what is visible in it. That costs no privacy: the statistics are part of one
example's own computation, and no other example enters. Shapes: B windows, L steps, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.timeseries.batch import Batch


class Frame(NamedTuple):
    """values = center + scale · normalised.

    Attributes:
        center: (B, L, C) baseline forecast in original units.
        scale: (B, 1, C) > 0.
        profile: (B, L, C) shape of `center` as the network sees it.
    """

    center: Tensor
    scale: Tensor
    profile: Tensor


class Normaliser(nn.Module, ABC):
    """Chooses each window's frame from its visible values and from constants."""

    @abstractmethod
    def frame(self, values: Tensor, visible: Tensor) -> Frame:
        """The frame of windows.

        Args:
            values: (B, L, C) original units.
            visible: (B, L, C) bool, True where a value may be used.
        """

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """The releases that its constants are made of; none where they are public."""
        return []


class DayMean(Normaliser):
    """Residuals around the mean of the visible days, scaled by the window's own spread.

    The centre of a step is the mean of the visible values at the same time of day in the same window; where
    no day has one, the mean of what is visible; where nothing is, 0. The scale is √(variance of the visible
    values + floor²).

    Args:
        steps_per_day: period of the mean, in steps.
        floor: smallest scale in original units, a public constant: what a difference worth noticing looks
            like. One number or one per channel.
        residual_scale: measure the spread around the centre (what the model has left to explain) rather than
            around the window's mean.
    """

    floor: Tensor

    def __init__(
        self, *, steps_per_day: int, floor: float | Sequence[float] = 0.1, residual_scale: bool = True
    ) -> None:
        super().__init__()
        if steps_per_day < 1:
            raise ValueError(
                f"steps_per_day is {steps_per_day}, but a day has at least one step: 24 for hourly data."
            )
        floors = torch.as_tensor(floor, dtype=torch.float32)
        if not bool((floors > 0).all()):
            raise ValueError(f"floor is {floor}, but it keeps scales from 0 and has to be positive: try 0.1.")
        self.steps_per_day = steps_per_day
        self.residual_scale = residual_scale
        self.register_buffer("floor", floors, persistent=False)

    def frame(self, values: Tensor, visible: Tensor) -> Frame:
        weights = visible.to(values.dtype)  # (B, L, C)
        seen = torch.where(visible, values, 0.0)  # (B, L, C)
        count = weights.sum(dim=1, keepdim=True)  # (B, 1, C)
        mean = seen.sum(dim=1, keepdim=True) / count.clamp_min(1)  # (B, 1, C)

        length = values.shape[1]
        days = -(-length // self.steps_per_day)
        pad = (0, 0, 0, days * self.steps_per_day - length)
        by_day = (days, self.steps_per_day)
        hour_sum = nn.functional.pad(seen, pad).unflatten(1, by_day).sum(dim=1)  # (B, steps_per_day, C)
        hour_count = nn.functional.pad(weights, pad).unflatten(1, by_day).sum(dim=1)  # (B, steps_per_day, C)
        hour_mean = torch.where(
            hour_count > 0, hour_sum / hour_count.clamp_min(1), mean
        )  # (B, steps_per_day, C)
        center = hour_mean.repeat(1, days, 1)[:, :length]  # (B, L, C)

        around = center if self.residual_scale else mean
        squares = torch.where(visible, (values - around).square(), 0.0)  # (B, L, C)
        variance = squares.sum(dim=1, keepdim=True) / count.clamp_min(1)  # (B, 1, C)
        scale = (variance + self.floor.square()).sqrt()  # (B, 1, C)
        return Frame(center, scale, (center - mean) / scale)


class FixedScale(Normaliser):
    """Constants from the configuration: public bounds, or the result of a charged release.

    Args:
        mean: per channel, original units.
        std: per channel, > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f"std is {list(std)} for {len(mean)} means, but it needs one positive value per mean."
            )
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32), persistent=False)

    def frame(self, values: Tensor, visible: Tensor) -> Frame:
        center = self.mean.expand_as(values)  # (B, L, C)
        return Frame(center, self.std.expand(len(values), 1, -1), torch.zeros_like(values))


def visible_mask(batch: Batch) -> Tensor:
    """(B, L, C) bool: observed, and not what the model has to predict."""
    return batch["observed"] & ~batch["target"]
