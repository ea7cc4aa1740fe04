"""Real and synthetic windows side by side.

Drawing only: arrays in, a matplotlib `Figure` out. A figure of private windows is private.

Shapes: N windows, L time steps, C channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_dp.tracking.palette import BASELINE, FORECAST, GRID, INK, MUTED

_TITLE_SIZE, _LABEL_SIZE, _TICK_SIZE = 11, 9.5, 8.5
_CURVES = 12


def synthesis_figure(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    channel_names: Sequence[str],
    steps_per_day: int,
    unit: str = "",
    channels: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Per channel: some real curves, some synthetic ones on the same axis, and three comparisons.

    The columns are: real windows, synthetic windows, means with their 10–90 % bands, the distribution of
    values, and the autocorrelation. Curves are spread over the windows, not chosen.

    Args:
        real: (N, L, C).
        synthetic: (M, L, C) in the same units.
        channel_names: C names.
        steps_per_day: sets the time axis.
        unit: of the values; "" leaves it out.
        channels: which to draw; None = the first three.
        title: of the whole figure.
    """
    rows = list(range(min(3, real.shape[2]))) if channels is None else list(channels)
    figure = Figure(figsize=(16, 1.2 + 2.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=_TITLE_SIZE, color=INK)
    grid = figure.subplots(len(rows), 5, squeeze=False)
    hours = np.arange(real.shape[1]) * 24 / steps_per_day
    for row, channel in enumerate(rows):
        one, other = real[..., channel], synthetic[..., channel]
        low, high = np.nanquantile(np.concatenate([one.ravel(), other.ravel()]), [0.001, 0.999])
        margin = 0.05 * max(high - low, 1e-9)
        for column, (values, colour) in enumerate(((one, INK), (other, FORECAST))):
            axes = grid[row, column]
            for curve in values[np.linspace(0, len(values) - 1, min(_CURVES, len(values))).astype(int)]:
                axes.plot(hours, curve, color=colour, alpha=0.5, linewidth=0.9)
            axes.set_ylim(low - margin, high + margin)
        _bands(grid[row, 2], one, other, hours=hours)
        grid[row, 2].set_ylim(low - margin, high + margin)
        _histograms(grid[row, 3], one, other, low=low, high=high)
        _autocorrelations(grid[row, 4], one, other, hours=hours)
        label = channel_names[channel]
        grid[row, 0].set_ylabel(f"{label} ({unit})" if unit else label, fontsize=_LABEL_SIZE, color=INK)
        grid[row, 3].set_xlabel(unit or "value", fontsize=_LABEL_SIZE, color=INK)
        grid[row, 4].set_xlabel("lag (hours)", fontsize=_LABEL_SIZE, color=INK)
        for column in range(3):
            grid[row, column].set_xlabel("hours", fontsize=_LABEL_SIZE, color=INK)
    headings = ("real windows", "synthetic windows", "mean and 10–90 % band", "values", "autocorrelation")
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize=_LABEL_SIZE, color=INK)
    for axes in grid.flat:
        _style(axes)
    handles, labels = grid[0, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=_LABEL_SIZE)
    return figure


def _bands(axes: Axes, real: np.ndarray, synthetic: np.ndarray, *, hours: np.ndarray) -> None:
    for values, colour, name in ((real, BASELINE, "real"), (synthetic, FORECAST, "synthetic")):
        lower, upper = np.quantile(values, [0.1, 0.9], axis=0)
        axes.fill_between(hours, lower, upper, color=colour, alpha=0.18, linewidth=0)
        axes.plot(hours, values.mean(axis=0), color=colour, linewidth=1.6, label=name)


def _histograms(axes: Axes, real: np.ndarray, synthetic: np.ndarray, *, low: float, high: float) -> None:
    bins: Any = np.linspace(low, high if high > low else low + 1, 41)
    for values, colour in ((real, BASELINE), (synthetic, FORECAST)):
        axes.hist(np.clip(values.ravel(), low, high), bins, density=True, histtype="step", color=colour)
    axes.set_yscale("log")


def _autocorrelations(axes: Axes, real: np.ndarray, synthetic: np.ndarray, *, hours: np.ndarray) -> None:
    lags = real.shape[1] // 2 + 1
    for values, colour in ((real, BASELINE), (synthetic, FORECAST)):
        centred = values - values.mean(axis=1, keepdims=True)
        energy = np.square(centred).sum(axis=1)
        moving = centred[energy > 0]
        if not len(moving):
            continue
        curve = [
            (moving[:, : moving.shape[1] - lag] * moving[:, lag:]).sum(axis=1) / energy[energy > 0]
            for lag in range(lags)
        ]
        axes.plot(hours[:lags], np.mean(curve, axis=1), color=colour, linewidth=1.6)
    axes.axhline(0, color=MUTED, linewidth=0.8)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=_TICK_SIZE, colors=MUTED, labelcolor=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
