"""The frame of imputation: lines between visible neighbours that fade into the day's profile.

Shapes: B windows, L steps, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dp.timeseries.normalise import DayMean, Frame, Normaliser


class Bridge(Normaliser):
    """Residuals around a line between visible neighbours near them, around the mean of days far from them.

    With d steps to the nearest visible value of a channel, the centre of a hidden step is
    a·line + (1 − a)·day mean with a = 1 / (1 + (d / reach)²); past the first or last visible value the line
    is flat. Visible steps are centred on the day mean alone, so that the network sees how far its neighbours
    are from it. Scale and fall-backs are those of `DayMean`; a channel without a visible value has centre 0.

    Args:
        steps_per_day: period of the mean, in steps.
        floor: smallest scale in original units, a public constant; one number or one per channel.
        reach: steps > 0 over which a neighbour says more than the time of day, a public constant.
    """

    def __init__(
        self, *, steps_per_day: int, floor: float | Sequence[float] = 0.1, reach: float = 3.0
    ) -> None:
        super().__init__()
        if not reach > 0:
            raise ValueError(f"reach is {reach}, but it is a distance in steps, above 0: try 3.")
        self.days = DayMean(steps_per_day=steps_per_day, floor=floor)
        self.reach = reach

    def frame(self, values: Tensor, visible: Tensor) -> Frame:
        profile = self.days.frame(values, visible)
        line, distance = bridge(values, visible)  # (B, L, C)
        weight = 1 / (1 + (distance / self.reach).square())  # (B, L, C), 0 where nothing is visible
        blend = torch.lerp(profile.center, line, weight)  # (B, L, C)
        center = torch.where(visible, profile.center, blend)  # (B, L, C)
        shape = profile.profile + (center - profile.center) / profile.scale  # (B, L, C)
        return Frame(center, profile.scale, shape)


def bridge(values: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Straight lines between visible neighbours, flat before the first and after the last of them.

    Args:
        values: (B, L, C).
        visible: (B, L, C) bool; what is not visible has no influence.

    Returns:
        (B, L, C) the lines, 0 for a channel without any visible value, and (B, L, C) the steps to the
        nearest visible one, ∞ for such a channel.
    """
    before, after = neighbours(visible)  # (B, L, C)
    length = values.shape[1]
    left = torch.where(before < 0, after, before)
    right = torch.where(after == length, before, after)
    exists = (left >= 0) & (left < length)
    left, right = left.clamp(0, length - 1), right.clamp(0, length - 1)
    known = torch.where(visible, values, 0.0)
    start, end = known.gather(1, left), known.gather(1, right)  # (B, L, C)
    step = torch.arange(length, device=values.device)[:, None]
    share = ((step - left) / (right - left).clamp_min(1)).clamp(0, 1)
    distance = torch.minimum((step - left).abs(), (right - step).abs()).to(values.dtype)
    line = torch.where(exists, torch.lerp(start, end, share.to(values.dtype)), 0.0)
    return line, torch.where(exists, distance, torch.inf)


def neighbours(visible: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, L, C) of the last visible step up to each one, −1 for none; of the next, L for none."""
    length = visible.shape[1]
    step = torch.arange(length, device=visible.device)[:, None]
    before = torch.where(visible, step, -1).cummax(dim=1).values
    after = torch.where(visible, step, length).flip(1).cummin(dim=1).values.flip(1)
    return before, after
