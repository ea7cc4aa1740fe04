"""The scores of a validation or test: errors of point forecasts, and how good the samples are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_dp.protocols import StandardisesErrors, provides
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.metrics import (
    CRPS,
    MAE,
    MSE,
    R2,
    Coverage,
    scored_positions,
    sum_over_channels,
)

_COVERAGE_LEVELS = (0.5, 0.9)

ALWAYS = ("mse", "rmse", "mae", "crps", *(f"coverage_{level * 100:.0f}" for level in _COVERAGE_LEVELS))
"""What every test has. `crps_sum` needs steps with all channels, `r2` values that vary."""


class WindowScores:
    """Scores over the batches of one validation or test.

    Args:
        data: a data module with `metric_mean` and `metric_std`, the constants (C,) that make errors
            comparable over channels.
        device: of the batches.

    Raises:
        ValueError: the data has no such constants.
    """

    def __init__(self, data: Any, *, device: torch.device) -> None:
        if not provides(data, StandardisesErrors):
            raise ValueError(
                "the data module has no metric_mean or metric_std, the constants (C,) that make errors "
                "comparable over channels: give it both, and hand it to the trainer as datamodule=."
            )
        self._mean, self._std = (
            torch.as_tensor(value, dtype=torch.float32, device=device)
            for value in (data.metric_mean, data.metric_std)
        )
        self._mse, self._mae = MSE().to(device), MAE().to(device)
        self._crps, self._crps_sum = CRPS().to(device), CRPS().to(device)
        self._coverage = Coverage(_COVERAGE_LEVELS).to(device)
        self._r2 = R2(len(self._std)).to(device)

    def update_errors(self, batch: Batch, forecast: Tensor) -> None:
        """Count the errors of point forecasts (B, L, C), on standardised values."""
        forecast, values = ((x - self._mean) / self._std for x in (forecast, batch["values"]))
        for metric in (self._mse, self._mae, self._r2):
            metric.update(forecast, values, mask=scored_positions(batch))

    def update_samples(self, batch: Batch, samples: Tensor) -> None:
        """Count samples (B, n, L, C), in original units."""
        mask = scored_positions(batch)  # (B, L, C)
        self._crps.update(samples, batch["values"], mask=mask)
        self._coverage.update(samples, batch["values"], mask=mask)
        if mask.shape[2] > 1:
            summed, values, mask = sum_over_channels(samples, batch["values"], mask=mask)
            self._crps_sum.update(summed, values, mask=mask)

    def errors(self) -> Mapping[str, Tensor]:
        """`mse` and `mae`."""
        return {"mse": self._mse.compute(), "mae": self._mae.compute()}

    def all(self) -> Mapping[str, Tensor]:
        """Every score by its name, without those that are undefined."""
        scores = dict(self.errors())
        scores["rmse"] = scores["mse"].sqrt()
        # Undefined where what is scored never changes.
        if not (r2 := self._r2.compute()).isnan():
            scores["r2"] = r2
        scores["crps"] = self._crps.compute()
        for level, share in zip(_COVERAGE_LEVELS, self._coverage.compute(), strict=True):
            scores[f"coverage_{level * 100:.0f}"] = share
        if len(self._mean) > 1:  # of one channel it is the CRPS
            score = self._crps_sum.compute()
            if score.isfinite():  # else no step has all channels to be predicted
                scores["crps_sum"] = score
        return scores
