"""Forecast and imputation scores: masked errors (standardised), CRPS and coverage (original units).

Each score is a pure update/compute pair under a thin `torchmetrics.Metric`. Only positions that were to
be predicted **and** were observed are scored; `scored_positions` gives that mask.

Shapes: B rows, L time steps, C channels, S samples, M scored positions, Q quantile levels.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_dp.timeseries.batch import Batch

CRPS_QUANTILES = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The 19 levels .05, .10, …, .95 of the protocol."""

# Limits the copy that sorting makes; also below the size at which torch.quantile refuses.
_QUANTILE_CHUNK = 1 << 22


def scored_positions(batch: Batch) -> Tensor:
    """(B, L, C) bool: was to be predicted and has a value to compare with."""
    return batch["target"] & batch["observed"]


def scored_scale(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """(C,) float32 mean and standard deviation of the scored values of each channel.

    Args:
        batches: of windows, at least one.

    Returns:
        Where a channel never changes the deviation is 1, so that its errors are in its own unit; where it
        has nothing to score the mean is 0 as well.
    """
    count = mean = squares = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        mask = scored_positions(batch)  # (B, L, C)
        values = torch.where(mask, batch["values"], 0.0).double().flatten(0, 1)  # (B·L, C)
        mask = mask.flatten(0, 1)  # (B·L, C)
        here = mask.sum(dim=0).double()  # (C,)
        own = values.sum(dim=0) / here.clamp_min(1)  # (C,)
        # Sums around each part's own mean, joined as Chan et al. (1983) do: Σx² − n·x̄² would lose a small
        # deviation around a large mean.
        total = count + here
        squares = squares + torch.where(mask, (values - own).square(), 0.0).sum(dim=0)
        squares = squares + (own - mean).square() * count * here / total.clamp_min(1)
        mean = mean + (own - mean) * here / total.clamp_min(1)
        count = total
    deviation = (squares / count.clamp_min(1)).sqrt()  # (C,)
    varies = deviation > torch.finfo(torch.float32).eps * mean.abs()  # else it is rounding
    return mean.float(), torch.where(varies, deviation, 1.0).float()


def masked_error_update(
    prediction: Tensor, values: Tensor, *, mask: Tensor, power: int
) -> tuple[Tensor, Tensor]:
    """Sum of |prediction − values|^power over the masked positions, and their number.

    Args:
        prediction: (B, L, C).
        values: (B, L, C) in the same units.
        mask: (B, L, C) bool, positions that count.
        power: 1 or 2.

    Returns:
        Two float64 scalars: sum and count. What lies outside the mask has no influence, NaN included.
    """
    _same_shape(prediction=prediction, values=values, mask=mask)
    error = (prediction - values)[mask].double()  # (M,)
    return error.abs().pow(power).sum(), mask.sum().double()


def masked_error_compute(total: Tensor, *, count: Tensor) -> Tensor:
    """Mean over all scored positions of all batches; NaN where nothing was scored."""
    return (total / count).float()


def crps_update(samples: Tensor, values: Tensor, *, mask: Tensor, quantiles: Tensor) -> tuple[Tensor, Tensor]:
    """Twice the pinball loss of the samples' quantiles, summed; and the sum of |values|.

    Args:
        samples: (B, S, L, C) in original units.
        values: (B, L, C) in original units.
        mask: (B, L, C) bool, positions that count.
        quantiles: (Q,) levels in (0, 1).

    Returns:
        (Q,) and scalar float64: Σ 2·max(q·(y − ŷ_q), (q − 1)·(y − ŷ_q)) per level q, and Σ |y|, where
        ŷ_q is the empirical quantile of the S samples by linear interpolation.
    """
    _same_shape(prediction=samples[:, 0], values=values, mask=mask)
    scored = samples.movedim(1, -1)[mask].double()  # (M, S)
    truth = values[mask].double()  # (M,)
    levels = quantiles.to(scored)
    loss = torch.zeros_like(levels)
    if not len(truth):  # torch.quantile refuses an empty tensor
        return loss, truth.sum()
    rows = max(1, _QUANTILE_CHUNK // max(scored.shape[-1], len(levels)))
    for some, y in zip(scored.split(rows), truth.split(rows), strict=True):
        error = y - torch.quantile(some, levels, dim=-1)  # (Q, m)
        level = levels[:, None]
        loss += 2 * torch.maximum(level * error, (level - 1) * error).sum(dim=-1)
    return loss, truth.abs().sum()


def coverage_update(samples: Tensor, values: Tensor, *, mask: Tensor, levels: Tensor) -> Tensor:
    """How many scored values lie in the central interval of each level.

    Args:
        samples: (B, S, L, C).
        values: (B, L, C) in the same units.
        mask: (B, L, C) bool, positions that count.
        levels: (Q,) of the intervals, in (0, 1): .9 reaches from the 5 % to the 95 % quantile.

    Returns:
        (Q,) float64. An interval holds its ends; its quantiles interpolate linearly between the S samples.
    """
    _same_shape(prediction=samples[:, 0], values=values, mask=mask)
    scored = samples.movedim(1, -1)[mask].double()  # (M, S)
    truth = values[mask].double()  # (M,)
    inside = scored.new_zeros(len(levels))
    if not len(truth):
        return inside
    ends = torch.cat([(1 - levels) / 2, (1 + levels) / 2]).to(scored)  # (2Q,)
    rows = max(1, _QUANTILE_CHUNK // max(scored.shape[-1], len(ends)))
    for some, y in zip(scored.split(rows), truth.split(rows), strict=True):
        lower, upper = torch.quantile(some, ends, dim=-1).chunk(2)  # (Q, m)
        inside += ((y >= lower) & (y <= upper)).sum(dim=-1)
    return inside


def sum_over_channels(samples: Tensor, values: Tensor, *, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What CRPS-sum scores: the sum of all channels, at the steps where every channel is scored.

    Args:
        samples: (B, S, L, C) in original units.
        values: (B, L, C) in original units.
        mask: (B, L, C) bool.

    Returns:
        Samples (B, S, L, 1), values (B, L, 1) and mask (B, L, 1), for `CRPS` (Salinas et al. 2019,
        arXiv 1910.03002).
    """
    return samples.sum(dim=3, keepdim=True), values.sum(dim=2, keepdim=True), mask.all(dim=2, keepdim=True)


def crps_compute(loss: Tensor, *, absolute: Tensor) -> Tensor:
    """Mean over the levels of the loss relative to Σ|y| of all batches; NaN where nothing was scored."""
    return (loss / absolute).mean().float()


class _MaskedError(Metric):
    """The state that MSE and MAE share; they score whatever units they are given."""

    higher_is_better = False
    full_state_update = False
    _power: int
    total: Tensor
    count: Tensor

    def __init__(self, **metric_options: Any) -> None:
        """Build the metric; `metric_options` are torchmetrics' own (`sync_on_compute`, …)."""
        super().__init__(**metric_options)
        # float64: half a million squared errors lose the fourth digit in a float32 sum.
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, values: Tensor, mask: Tensor) -> None:
        """Add a batch: prediction and values (B, L, C), standardised as the protocol asks; mask bool."""
        total, count = masked_error_update(prediction, values, mask=mask, power=self._power)
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """The mean over everything scored so far, a float32 scalar."""
        return masked_error_compute(self.total, count=self.count)


class MSE(_MaskedError):
    """Mean squared error over the scored positions."""

    _power = 2


class MAE(_MaskedError):
    """Mean absolute error over the scored positions."""

    _power = 1


class R2(Metric):
    """1 − Σ(y − ŷ)² ÷ Σ(y − ȳ)² over all scored positions, ȳ the mean of the scored values of a channel.

    What is explained is the variance of the test values that are scored, within channels: differences between
    channels' levels count for nothing, and channels weigh by their variance in the units they are given
    (standardised, as the protocol asks). scikit-learn's `r2_score(multioutput="variance_weighted")`. It
    differs from 1 − MSE wherever those values don't vary as the standardisation says.
    """

    higher_is_better = True
    full_state_update = False
    error: Tensor
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, num_channels: int, **metric_options: Any) -> None:
        """Build the metric.

        Args:
            num_channels: C.
            **metric_options: torchmetrics' own (`sync_on_compute`, …).
        """
        super().__init__(**metric_options)
        self.add_state("error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.zeros(num_channels, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, values: Tensor, mask: Tensor) -> None:
        """Add a batch: prediction and values (B, L, C), standardised as the protocol asks; mask bool."""
        error, _ = masked_error_update(prediction, values, mask=mask, power=2)
        # Of values with a standard deviation of 1 the difference of squares loses nothing that counts.
        scored = torch.where(mask, values, 0.0).double().flatten(0, 1)  # (B·L, C)
        self.error += error
        self.count += mask.flatten(0, 1).sum(dim=0)
        self.total += scored.sum(dim=0)
        self.squares += scored.square().sum(dim=0)

    def compute(self) -> Tensor:
        """A float32 scalar, at most 1; NaN where nothing was scored or nothing varies."""
        around_mean = self.squares - self.total.square() / self.count.clamp_min(1)  # (C,)
        varies = around_mean > 1e-12 * self.squares  # else it is rounding
        variance = torch.where(varies, around_mean, 0.0).sum()
        return torch.where(variance > 0, 1 - self.error / variance, torch.nan).float()


class CRPS(Metric):
    """Continuous ranked probability score from samples: 19 quantiles, normalised by Σ|y| globally.

    With quantile levels Q: (1/|Q|) Σ_q Σ 2·pinball_q(y, ŷ_q) / Σ |y| over all scored positions of all
    batches, in original units: the definition of CSDI (Tashiro et al. 2021) and its successors.
    """

    higher_is_better = False
    full_state_update = False
    quantiles: Tensor
    loss: Tensor
    absolute: Tensor

    def __init__(self, **metric_options: Any) -> None:
        """Build the metric; `metric_options` are torchmetrics' own (`sync_on_compute`, …)."""
        super().__init__(**metric_options)
        levels = torch.tensor(CRPS_QUANTILES, dtype=torch.float64)
        self.register_buffer("quantiles", levels, persistent=False)
        self.add_state("loss", torch.zeros(len(levels), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("absolute", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, samples: Tensor, values: Tensor, mask: Tensor) -> None:
        """Add a batch: samples (B, S, L, C), values (B, L, C), mask (B, L, C) bool."""
        loss, absolute = crps_update(samples, values, mask=mask, quantiles=self.quantiles)
        self.loss += loss
        self.absolute += absolute

    def compute(self) -> Tensor:
        """The score of everything so far, a float32 scalar; 0 is perfect."""
        return crps_compute(self.loss, absolute=self.absolute)


class Coverage(Metric):
    """Share of scored values inside the samples' central intervals; of a calibrated model, their levels."""

    full_state_update = False
    levels: Tensor
    inside: Tensor
    count: Tensor

    def __init__(self, levels: tuple[float, ...] = (0.5, 0.9), **metric_options: Any) -> None:
        """Build the metric.

        Args:
            levels: of the intervals, each in (0, 1).
            **metric_options: torchmetrics' own (`sync_on_compute`, …).
        """
        super().__init__(**metric_options)
        if not levels or not all(0 < level < 1 for level in levels):
            raise ValueError(f"levels is {levels}, but the levels of intervals lie strictly between 0 and 1.")
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float64), persistent=False)
        self.add_state("inside", torch.zeros(len(levels), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, samples: Tensor, values: Tensor, mask: Tensor) -> None:
        """Add a batch: samples (B, S, L, C), values (B, L, C), mask (B, L, C) bool."""
        self.inside += coverage_update(samples, values, mask=mask, levels=self.levels)
        self.count += mask.sum()

    def compute(self) -> Tensor:
        """(Q,) float32 shares; NaN where nothing was scored."""
        return (self.inside / self.count).float()


def _same_shape(*, prediction: Tensor, values: Tensor, mask: Tensor) -> None:
    if not prediction.shape == values.shape == mask.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)}, values {tuple(values.shape)} and mask "
            f"{tuple(mask.shape)} must all be (B, L, C); samples carry their own dimension second."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; it must be bool: an integer mask would select rows.")
