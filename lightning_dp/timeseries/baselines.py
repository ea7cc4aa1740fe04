"""Forecasts that learn nothing: what a private model has to beat to be worth its budget.

They read the context of the window they forecast and nothing else, so their ε is 0 wherever that context is
no train row (`WindowDataModule` sees to that, but for public data).

Shapes: B rows, L time steps (context first, then the horizon), C channels, D days.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.imputation_baselines import IMPUTATIONS
from lightning_dp.timeseries.masks import Kind, kind_of
from lightning_dp.timeseries.metrics import CRPS, MAE, MSE, R2, scored_positions


class EvaluationData(Protocol):
    """What a data module has to offer for evaluation."""

    @property
    def metric_std(self) -> Tensor:
        """(C,) standard deviation of the standardised metrics, of no private train row."""

    @property
    def steps_per_day(self) -> int:
        """Time steps of a day."""

    def setup(self, stage: str | None = None) -> None:
        """Make the test windows available."""

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test windows in order."""


def seasonal_naive(batch: Batch, *, steps_per_day: int) -> Tensor:
    """The last day again: the latest observation at the same time of day, by channel.

    A time of day that was never observed gets the channel's mean over the context, and a channel without
    any observation gets 0.

    Args:
        batch: forecast windows; the targets are the same last steps of every row.
        steps_per_day: time steps of a day, at most the context length.

    Returns:
        (B, L, C) in original units. Context positions repeat what was observed there.
    """
    days = _days(batch, steps_per_day=steps_per_day)  # (B, D, P, C), latest day last
    profile = days[:, 0]
    for day in range(1, days.shape[1]):
        profile = torch.where(days[:, day].isnan(), profile, days[:, day])
    return _repeat(profile, batch=batch)


def mean_of_days(batch: Batch, *, steps_per_day: int, num_days: int | None = None) -> Tensor:
    """The mean of the last days at the same time of day; missing observations are left out.

    Arguments, fall-backs and result as `seasonal_naive`; `num_days` None = all whole days of the context.
    """
    days = _days(batch, steps_per_day=steps_per_day, num_days=num_days)
    return _repeat(days.nanmean(dim=1), batch=batch)


def sample_days(batch: Batch, *, steps_per_day: int, num_days: int | None = None) -> Tensor:
    """The last days themselves as an empirical distribution, the earliest first.

    A day without an observation at some time of day takes the mean of the other days there.

    Returns:
        (B, D, L, C) in original units: the samples that belong to `mean_of_days`.
    """
    days = _days(batch, steps_per_day=steps_per_day, num_days=num_days)
    filled = torch.where(days.isnan(), days.nanmean(dim=1, keepdim=True), days)
    return torch.stack([_repeat(day, batch=batch) for day in filled.unbind(dim=1)], dim=1)


def last_value(batch: Batch, *, steps_per_day: int) -> Tensor:
    """The latest observation of each channel, held; 0 for a channel without any.

    `steps_per_day` is not used: every baseline is called in the same way.

    Returns:
        (B, L, C) in original units. Context positions repeat what was observed there.
    """
    context = _context(batch)  # (B, L_C, C)
    position = torch.arange(context.shape[1], device=context.device)[:, None]
    latest = torch.where(context.isnan(), -1, position).amax(dim=1, keepdim=True)  # (B, 1, C)
    return _repeat(context.gather(1, latest.clamp(min=0)), batch=batch)


BASELINES: dict[str, Callable[..., Tensor]] = {
    "seasonal naive": seasonal_naive,
    "mean of days": mean_of_days,
    "last value": last_value,
}
"""Point forecasts by the name that tables and figures print."""

BASELINES_OF: dict[Kind, dict[str, Callable[..., Tensor]]] = {
    "forecast": BASELINES,
    "imputation": IMPUTATIONS,
    "synthesis": {},
}
"""Those of each kind of task."""


_OF_DAYS = (seasonal_naive, mean_of_days)


def choose_baselines(
    kind: Kind, *, context_length: int, steps_per_day: int
) -> tuple[dict[str, Callable[..., Tensor]], str]:
    """The baselines of a kind of task that windows of this context have room for.

    Args:
        kind: of the task.
        context_length: ≥ 0 known steps of a forecast; of no meaning for other tasks.
        steps_per_day: ≥ 1.

    Returns:
        Those that apply, by name, and a sentence that names the others; "" where all do.
    """
    own = BASELINES_OF[kind]
    if kind != "forecast" or context_length >= steps_per_day:
        return own, ""
    out = [name for name, baseline in own.items() if baseline in _OF_DAYS]
    left = {name: baseline for name, baseline in own.items() if name not in out}
    return left, (
        f"{' and '.join(out)} are left out: they repeat days of {steps_per_day} steps, and the context has "
        f"{context_length}"
    )


def evaluate_baselines(datamodule: EvaluationData) -> dict[str, dict[str, float]]:
    """Score every baseline of the task that applies on all test windows; none exist for synthesis.

    The CRPS of the mean of days is that of the days as samples; the others are point predictions, whose CRPS
    equals their absolute error relative to Σ|y|.

    Args:
        datamodule: anything with `setup`, `test_dataloader`, `steps_per_day` and `metric_std`.

    Returns:
        name → {"mse", "rmse", "mae", "r2", "crps"}; CRPS in original units, the others on standardised
        values; r2 where it is defined.
    """
    datamodule.setup("test")
    scale = datamodule.metric_std
    scores: dict[str, tuple[MSE, MAE, R2, CRPS]] = {}
    baselines: dict[str, Callable[..., Tensor]] | None = None
    for batch in datamodule.test_dataloader():
        if baselines is None:
            baselines, _ = baselines_of_batch(batch, steps_per_day=datamodule.steps_per_day)
            scores = {name: (MSE(), MAE(), R2(len(scale)), CRPS()) for name in baselines}
        mask = scored_positions(batch)
        for name, baseline in baselines.items():
            mse, mae, r2, crps = scores[name]
            point = baseline(batch, steps_per_day=datamodule.steps_per_day)
            samples = point[:, None]
            if baseline is mean_of_days:
                samples = sample_days(batch, steps_per_day=datamodule.steps_per_day)
            # The mean of the standardisation cancels in a difference.
            for metric in (mse, mae, r2):
                metric.update(point / scale, batch["values"] / scale, mask)
            crps.update(samples, batch["values"], mask)
    return {name: _computed(*metrics) for name, metrics in scores.items()}


def baselines_of_batch(batch: Batch, *, steps_per_day: int) -> tuple[dict[str, Callable[..., Tensor]], str]:
    """`choose_baselines` for the task and the context of a batch's first window."""
    kind = kind_of(batch["target"])
    known = ~batch["target"].any(dim=2)  # (B, L)
    context = int(known[0].sum()) if len(known) else 0
    return choose_baselines(kind, context_length=context, steps_per_day=steps_per_day)


def _computed(mse: MSE, mae: MAE, r2: R2, crps: CRPS) -> dict[str, float]:
    error, explained = mse.compute(), r2.compute()
    found = {"mse": error, "rmse": error.sqrt(), "mae": mae.compute(), "crps": crps.compute()}
    found |= {} if explained.isnan() else {"r2": explained}
    return {name: float(value) for name, value in found.items()}


def _context(batch: Batch) -> Tensor:
    """(B, L_C, C) what came before the horizon, NaN where it was not observed."""
    steps = batch["target"].any(dim=2)  # (B, L)
    if not len(steps):
        raise ValueError("the batch has no rows; a baseline needs at least one window.")
    horizon = int(steps[0].sum())
    length = steps.shape[1]
    expected = torch.arange(length, device=steps.device) >= length - horizon
    if not (steps == expected).all() or not 0 < horizon < length:
        raise ValueError(
            f"the target mask is not a forecast: the last steps of all rows must be the targets (row 0 has "
            f"{horizon} target steps of {length}); these baselines don't impute."
        )
    values, observed = batch["values"], batch["observed"] & ~batch["target"]
    return torch.where(observed, values, torch.nan)[:, : length - horizon]


def _days(batch: Batch, *, steps_per_day: int, num_days: int | None = None) -> Tensor:
    """(B, D, steps_per_day, C) the last whole days of the context, NaN where not observed."""
    context = _context(batch)
    available = context.shape[1] // steps_per_day
    wanted = available if num_days is None else num_days
    if not 1 <= wanted <= available:
        raise ValueError(
            f"{'one day' if num_days is None else f'num_days = {num_days}'} of {steps_per_day} steps doesn't "
            f"fit into a context of {context.shape[1]} steps: lengthen context_length or use fewer days."
        )
    days = context[:, context.shape[1] - wanted * steps_per_day :]
    return days.unflatten(1, (wanted, steps_per_day))


def _repeat(profile: Tensor, *, batch: Batch) -> Tensor:
    """Lay a profile (B, P, C) end to end over the horizon; fill what it lacks; keep the context."""
    context = _context(batch)
    mean = context.nanmean(dim=1, keepdim=True).nan_to_num(nan=0.0)  # (B, 1, C)
    profile = torch.where(profile.isnan(), mean, profile)
    horizon = batch["values"].shape[1] - context.shape[1]
    copies = -(-horizon // profile.shape[1])
    future = profile.repeat(1, copies, 1)[:, :horizon]
    past = torch.where(context.isnan(), mean, context)
    return torch.cat([past, future], dim=1)
