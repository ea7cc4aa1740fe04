"""A normaliser whose constants are a charged release: the noisy mean and deviation of each channel."""

from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.release import BoundedVariance, Moments, PublicBounds
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.normalise import Frame, Normaliser
from lightning_dp.timeseries.public_scale import check_bounds, constant_frame


class ReleasedScale(Normaliser):
    """Mean and standard deviation of each channel, released once before training.

    Guarantee: each channel's pair is one Gaussian release with `noise_multiplier` on what one privacy unit
    adds, charged with the run it belongs to (`BoundedVariance`); every unit weighs the same. Until the
    release, and in a run without privacy, the constants are those of the bounds.

    With N units the mean is off by about 1.1 · noise_multiplier / N half-widths of the bounds, the variance
    by as many squared half-widths: narrow bounds (values outside count as the nearest) make for a good scale.

    Args:
        bounds: [lower, upper] per channel in original units, known without looking at the data.
        noise_multiplier: σ > 0 of each channel's release; it comes off the budget of training.
        floor: smallest scale in original units, > 0, a public constant: the noise may leave no variance.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self, *, bounds: Sequence[tuple[float, float]], noise_multiplier: float = 10.0, floor: float = 0.05
    ) -> None:
        super().__init__()
        self._bounds = check_bounds(bounds)
        if not (noise_multiplier > 0 and floor > 0):
            raise ValueError(
                f"noise_multiplier is {noise_multiplier} and floor {floor}; both must be above 0."
            )
        self.noise_multiplier = noise_multiplier
        self.floor = floor
        # Part of the state: a resumed run does not release again, and a checkpoint is complete by itself.
        self.register_buffer("center", torch.tensor([pair.centre for pair in self._bounds]))
        self.register_buffer("scale", torch.tensor([pair.radius for pair in self._bounds]))

    def frame(self, values: Tensor, visible: Tensor) -> Frame:
        return constant_frame(values, center=self.center, scale=self.scale)

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        return [
            ChannelScale(self, channel=channel, bounds=bounds, unit=unit)
            for channel, bounds in enumerate(self._bounds)
        ]


@final
class ChannelScale(Preparation[Moments]):
    """The release of one channel's mean and variance into its normaliser."""

    def __init__(
        self, normaliser: ReleasedScale, *, channel: int, bounds: PublicBounds, unit: PrivacyUnit
    ) -> None:
        """Declare it.

        Args:
            normaliser: where the answer goes.
            channel: which one.
            bounds: of its values.
            unit: of the train set.
        """
        self._normaliser = normaliser
        self._channel = channel
        self._rows_per_unit = unit.rows_per_unit
        self._mechanism = BoundedVariance(
            noise_multiplier=normaliser.noise_multiplier, bounds=bounds, num_units=unit.num_units
        )

    @property
    def mechanism(self) -> BoundedVariance:
        return self._mechanism

    def values(self, batches: Iterable[Batch]) -> list[np.ndarray]:
        """What was observed of each unit in its windows, targets included: they are paid for."""
        units: list[np.ndarray] = []
        for batch in batches:
            channels = batch["values"].shape[2]
            if channels != len(self._normaliser.center):
                raise ValueError(
                    f"the normaliser has bounds for {len(self._normaliser.center)} channels and the data has "
                    f"{channels}: give one pair per channel."
                )
            observed = batch["observed"][..., self._channel]  # (B, L)
            values = batch["values"][..., self._channel].where(observed, torch.nan)  # (B, L)
            units.extend(values.unflatten(0, (-1, self._rows_per_unit)).flatten(1).numpy())  # (U, λ·L)
        return units

    def apply(self, answer: Moments) -> None:
        deviation = max(answer.variance**0.5, self._normaliser.floor)
        self._normaliser.center[self._channel] = answer.mean
        self._normaliser.scale[self._channel] = deviation
