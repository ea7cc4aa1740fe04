"""Imputations that learn nothing: what a model that fills gaps has to beat.

They read no other window, so their ε is 0. Whatever is visible keeps its value.

Shapes: B windows, L time steps, C channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.bridge import Bridge, bridge, neighbours
from lightning_dp.timeseries.normalise import DayMean, visible_mask


def linear(batch: Batch, *, steps_per_day: int) -> Tensor:
    """Straight lines between visible neighbours of a channel, flat before the first and after the last.

    Args:
        batch: windows with any target mask.
        steps_per_day: not used: every baseline is called in the same way.

    Returns:
        (B, L, C) in original units; 0 for a channel with nothing visible.
    """
    line, _ = bridge(batch["values"], visible_mask(batch))
    return _keep_visible(line, batch=batch)


def last_value_carried(batch: Batch, *, steps_per_day: int) -> Tensor:
    """The latest visible value of a channel, before the first one the first. Otherwise as `linear`."""
    visible = visible_mask(batch)
    before, after = neighbours(visible)  # (B, L, C)
    nearest = torch.where(before < 0, after, before).clamp(max=visible.shape[1] - 1)
    known = torch.where(visible, batch["values"], 0.0)
    return _keep_visible(known.gather(1, nearest), batch=batch)


def window_mean(batch: Batch, *, steps_per_day: int) -> Tensor:
    """The mean of what is visible of a channel. Otherwise as `linear`."""
    visible = visible_mask(batch)
    total = torch.where(visible, batch["values"], 0.0).sum(dim=1, keepdim=True)
    mean = total / visible.sum(dim=1, keepdim=True).clamp_min(1)  # (B, 1, C)
    return _keep_visible(mean.expand_as(batch["values"]), batch=batch)


def day_profile_and_linear(batch: Batch, *, steps_per_day: int) -> Tensor:
    """The mean of the visible days at that time of day, plus the line between its neighbours' deviations.

    Args:
        batch: windows with any target mask.
        steps_per_day: time steps of a day.

    Returns:
        (B, L, C) in original units; 0 for a channel with nothing visible.
    """
    visible = visible_mask(batch)
    center = DayMean(steps_per_day=steps_per_day).to(batch["values"].device)
    profile = center.frame(batch["values"], visible).center  # (B, L, C)
    deviation, _ = bridge(batch["values"] - profile, visible)
    return _keep_visible(profile + deviation, batch=batch)


def line_into_day_profile(batch: Batch, *, steps_per_day: int) -> Tensor:
    """Lines near visible values that fade into the day's profile: the centre of `Bridge`, net left out.

    Arguments and result as `day_profile_and_linear`.
    """
    normaliser = Bridge(steps_per_day=steps_per_day).to(batch["values"].device)
    return _keep_visible(normaliser.frame(batch["values"], visible_mask(batch)).center, batch=batch)


IMPUTATIONS: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "last value carried": last_value_carried,
    "window mean": window_mean,
    "day profile + linear": day_profile_and_linear,
    "line into day profile": line_into_day_profile,
}
"""Point imputations by the name that tables and figures print."""


def _keep_visible(filled: Tensor, *, batch: Batch) -> Tensor:
    return torch.where(visible_mask(batch), batch["values"], filled)
