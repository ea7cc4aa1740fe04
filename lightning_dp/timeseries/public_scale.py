"""A normaliser that costs nothing: the scale of public bounds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_dp.privacy.release import PublicBounds
from lightning_dp.timeseries.normalise import Frame, Normaliser


class PublicScale(Normaliser):
    """Bounds known without looking at the data, mapped to [−1, 1].

    Args:
        bounds: [lower, upper] per channel in original units, or one pair for all channels.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, *, bounds: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        channels = check_bounds(bounds)
        self.register_buffer("center", torch.tensor([pair.centre for pair in channels]), persistent=False)
        self.register_buffer("scale", torch.tensor([pair.radius for pair in channels]), persistent=False)

    def frame(self, values: Tensor, visible: Tensor) -> Frame:
        return constant_frame(values, center=self.center, scale=self.scale)


def check_bounds(bounds: Sequence[tuple[float, float]]) -> list[PublicBounds]:
    """Pairs as bounds.

    Raises:
        ValueError: there are none, or a pair can't be right.
    """
    if not bounds:
        raise ValueError("bounds is empty; give [lower, upper] for every channel, or one pair for all.")
    return [PublicBounds(lower=float(lower), upper=float(upper)) for lower, upper in bounds]


def constant_frame(values: Tensor, *, center: Tensor, scale: Tensor) -> Frame:
    """The frame that is the same for every window and step.

    Args:
        values: (B, L, C).
        center: (C,) or (1,) in original units.
        scale: (C,) or (1,) > 0.

    Raises:
        ValueError: there are neither C constants nor one.
    """
    channels = values.shape[2]
    if len(center) not in (1, channels):
        raise ValueError(
            f"the normaliser has bounds for {len(center)} channels and the data has {channels}: give one "
            "pair per channel, or one for all."
        )
    return Frame(
        center.expand_as(values),  # (B, L, C)
        scale.expand(len(values), 1, channels),  # (B, 1, C)
        torch.zeros_like(values),  # (B, L, C)
    )
