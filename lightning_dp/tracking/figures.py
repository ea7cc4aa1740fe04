"""Figures of a run: forecast fans, quality against ε and training curves.

Drawing only: tensors and rows in, a matplotlib `Figure` out. Figures are made without pyplot, so nothing
touches a display, a global style or a figure registry. Save one with `figure.savefig(path)`.

A figure of private data is private: fans and curves show values that no mechanism has released.

Shapes: B windows, S samples, L time steps, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lightning_dp.tracking.palette import BASELINE, FORECAST, GRID, INK, MUTED, method_styles, style_of_curve

_TITLE_SIZE, _LABEL_SIZE, _TICK_SIZE = 11, 9.5, 8.5


def forecast_fan(
    samples: ArrayLike,
    *,
    values: ArrayLike,
    observed: ArrayLike,
    target: ArrayLike,
    channel_names: Sequence[str],
    steps_per_day: int,
    unit: str = "",
    baseline: ArrayLike | None = None,
    baseline_name: str = "mean of days",
    examples: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    example_names: Sequence[str] | None = None,
    context_hours: float | None = 48.0,
    title: str = "",
) -> Figure:
    """Context, truth, the samples' median, 50 % and 90 % bands: a row per channel, a column per example.

    Works for imputation too: the bands lie wherever `target` does.

    Args:
        samples: (B, S, L, C) in original units.
        values: (B, L, C) in original units.
        observed: (B, L, C) bool, where `values` means anything.
        target: (B, L, C) bool, what was predicted.
        channel_names: C names.
        steps_per_day: steps of 24 hours; sets the time axis.
        unit: of the values, "kWh" for instance; "" leaves it out.
        baseline: (B, L, C) a point forecast to compare with, or None.
        baseline_name: its name in the legend.
        examples: windows to draw; None = up to three, spread over the batch.
        channels: channels to draw; None = the first three.
        example_names: titles of the columns, one per drawn example; None = "window i".
        context_hours: how much to show before the first predicted step; None = all of it.
        title: of the whole figure.

    Raises:
        ValueError: shapes that don't fit each other, or an index that is out of range.
    """
    drawn = _numpy(samples)
    truth, seen, wanted = _numpy(values), _numpy(observed).astype(bool), _numpy(target).astype(bool)
    reference = None if baseline is None else _numpy(baseline)
    if drawn.ndim != 4 or drawn[:, 0].shape != truth.shape:
        raise ValueError(
            f"samples have shape {drawn.shape} and values {truth.shape}; "
            "they must be (B, S, L, C) and (B, L, C)."
        )
    for name, array in (("observed", seen), ("target", wanted), ("baseline", reference)):
        if array is not None and array.shape != truth.shape:
            raise ValueError(f"{name} has shape {array.shape}; it must be that of values, {truth.shape}.")
    if len(channel_names) != truth.shape[2]:
        raise ValueError(
            f"channel_names has {len(channel_names)} names; values have {truth.shape[2]} channels."
        )
    columns = _pick(examples, available=len(truth), field="examples", spread=True)
    rows = _pick(channels, available=truth.shape[2], field="channels", spread=False)
    if example_names is not None and len(example_names) != len(columns):
        raise ValueError(
            f"example_names has {len(example_names)} names; {len(columns)} examples are drawn: name each."
        )

    figure = _figure(width=1.8 + 3.9 * len(columns), height=1.3 + 2.1 * len(rows), title=title)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex="col", sharey="row")
    for column, example in enumerate(columns):
        # Hours from the first predicted step, so that 0 is "now" whatever the lengths are.
        steps = np.arange(truth.shape[1]) - int(wanted[example].any(axis=1).argmax())
        start = 0 if context_hours is None else int((steps * 24 < -context_hours * steps_per_day).sum())
        hours = steps[start:] * 24 / steps_per_day
        for row, channel in enumerate(rows):
            at = np.s_[example, start:, channel]
            _fan(
                grid[row, column],
                hours=hours,
                truth=np.where(seen[at], truth[at], np.nan),
                target=wanted[at],
                samples=drawn[example, :, start:, channel],
                baseline=None if reference is None else reference[at],
                baseline_name=baseline_name,
            )
            if column == 0:
                label = channel_names[channel]
                grid[row, 0].set_ylabel(
                    f"{label} ({unit})" if unit else label, fontsize=_LABEL_SIZE, color=INK
                )
        heading = example_names[column] if example_names is not None else f"window {example}"
        grid[0, column].set_title(heading, fontsize=_LABEL_SIZE, color=INK)
        grid[-1, column].set_xlabel("hours from the first predicted step", fontsize=_LABEL_SIZE, color=INK)
        grid[-1, column].set_xticks(_hour_ticks(hours))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    _legend_below(figure, handles=handles, labels=labels)
    return figure


def quality_against_epsilon(
    rows: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    baselines: Mapping[str, float] | None = None,
    unit_name: str = "",
    delta: float | None = None,
    title: str = "",
    log_metric: bool = False,
) -> Figure:
    """A metric against ε, one line per method; ε = ∞ stands apart behind an axis break.

    Args:
        rows: result rows with `method`, `epsilon` (math.inf or None = not private), `mean` and, where there
            are seeds, `se`. A row with a `metric` other than the one asked for is left out.
        metric: its name, also the axis label ("CRPS").
        baselines: name → value, drawn as horizontal lines: results that cost no privacy.
        unit_name: privacy unit for the axis label ("household").
        delta: for the axis label.
        title: of the figure.
        log_metric: logarithmic metric axis.

    Raises:
        ValueError: no row is left to draw, or a row lacks a field or has ε ≤ 0.
    """
    chosen = [row for row in rows if row.get("metric", metric) == metric]
    if not chosen:
        raise ValueError(f"no row has metric {metric!r}; there is nothing to draw: check the name.")
    for row in chosen:
        missing = [field for field in ("method", "epsilon", "mean") if field not in row]
        if missing:
            raise ValueError(f"a row lacks {', '.join(missing)}; it has {', '.join(row)}.")
        if _epsilon(row) <= 0 or math.isnan(_epsilon(row)):
            raise ValueError(
                f"a row of {row['method']!r} has epsilon {row['epsilon']!r}; it must be positive."
            )
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    styles = method_styles(methods)
    finite = sorted({_epsilon(row) for row in chosen if math.isfinite(_epsilon(row))})
    unbounded = any(math.isinf(_epsilon(row)) for row in chosen)

    figure = _figure(width=7.6, height=4.6, title=title)
    widths = [5.0] * bool(finite) + [1.1 if finite else 5.0] * unbounded
    axes = list(
        figure.subplots(1, len(widths), squeeze=False, sharey=True, gridspec_kw={"width_ratios": widths})[0]
    )
    finite_axes = axes[0] if finite else None
    infinite_axes = axes[-1] if unbounded else None
    for number, method in enumerate(methods):
        style: dict[str, Any] = {
            "color": styles[method].light,
            "marker": styles[method].marker,
            "markersize": 6,
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
            "elinewidth": 1.3,
            "capsize": 3,
        }
        # Methods run at the same ε: moved apart a little, so that error bars don't cover each other.
        shift = number - (len(methods) - 1) / 2
        own = sorted((row for row in chosen if row["method"] == method), key=_epsilon)
        private = [row for row in own if math.isfinite(_epsilon(row))]
        other = [row for row in own if math.isinf(_epsilon(row))]
        if finite_axes is not None and private:
            finite_axes.errorbar(
                [_epsilon(row) * 1.018**shift for row in private],
                [row["mean"] for row in private],
                yerr=_error_bars(private),
                linewidth=1.8,
                label=method,
                zorder=3,
                **style,
            )
        if infinite_axes is not None and other:
            spread = 0.5 + 0.5 * shift / max(len(methods), 4)
            infinite_axes.errorbar(
                [spread] * len(other),
                [row["mean"] for row in other],
                yerr=_error_bars(other),
                linestyle="none",
                label=method,
                zorder=3,
                **style,
            )

    if log_metric:
        axes[0].set_yscale("log")
    for axis in axes:
        _style(axis)
        axis.margins(y=0.12)
        for value in (baselines or {}).values():
            axis.axhline(value, color=MUTED, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
    axes[0].set_ylabel(metric, fontsize=_LABEL_SIZE, color=INK)
    if finite_axes is not None:
        finite_axes.set_xscale("log")
        finite_axes.set_xticks(finite, [f"{epsilon:g}" for epsilon in finite])
        finite_axes.minorticks_off()
        finite_axes.set_xlim(finite[0] / 1.35, finite[-1] * 1.35)
        of_unit = f" per {unit_name}" if unit_name else ""
        at_delta = f" (δ = {delta:g})" if delta is not None else ""
        finite_axes.set_xlabel(
            f"ε{of_unit}{at_delta}, smaller is more private", fontsize=_LABEL_SIZE, color=INK
        )
    if infinite_axes is not None:
        infinite_axes.set_xlim(0, 1)
        infinite_axes.set_xticks([0.5], ["∞"])
        infinite_axes.set_xlabel("not private", fontsize=_LABEL_SIZE, color=INK)
    if finite_axes is not None and infinite_axes is not None:
        _break_between(finite_axes, infinite_axes)
    _label_lines(axes[-1], values=baselines or {})
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    _legend_below(figure, handles=[found[method] for method in methods], labels=methods)
    return figure


def training_curve(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ylabel: str = "loss",
    epsilon: tuple[ArrayLike, ArrayLike] | None = None,
    target_epsilon: float | None = None,
    smooth: int = 25,
    title: str = "",
) -> Figure:
    """Curves over optimizer steps, raw and smoothed, with the ε spent so far below them.

    Args:
        curves: name → (steps, values). NaN, as in a metrics.csv that several loggers share, is skipped.
        ylabel: of the curves.
        epsilon: (steps, ε spent), or None for a run that is not private.
        target_epsilon: drawn as the line that ε must not cross.
        smooth: ≥ 1, width of the running median in points; short curves are drawn as they are.
        title: of the figure.

    Raises:
        ValueError: no curve has a finite point, or steps and values differ in number.
    """
    if smooth < 1:
        raise ValueError(f"smooth is {smooth}; it is a number of points and must be at least 1.")
    cleaned = {name: _finite_points(name, points=points) for name, points in curves.items()}
    cleaned = {name: points for name, points in cleaned.items() if len(points[0])}
    if not cleaned:
        raise ValueError("no curve has a finite point; there is nothing to draw.")
    figure = _figure(width=7.6, height=4.2 if epsilon is None else 5.4, title=title)
    ratios = [1.0] if epsilon is None else [3.0, 1.0]
    grid = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios})
    main: Axes = grid[0, 0]
    for number, (name, (steps, values)) in enumerate(cleaned.items()):
        colour = style_of_curve(number).light
        if smooth > 1 and len(values) >= 3 * smooth:
            main.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25, zorder=2)
            main.plot(
                steps, _running_median(values, width=smooth), color=colour, linewidth=2, label=name, zorder=3
            )
        else:
            marker = "o" if len(values) <= 40 else None
            main.plot(
                steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=name, zorder=3
            )
    everything = np.concatenate([values for _, values in cleaned.values()])
    if everything.min() > 0 and everything.max() / everything.min() > 20:
        main.set_yscale("log")
    _style(main)
    main.set_ylabel(ylabel, fontsize=_LABEL_SIZE, color=INK)
    main.legend(frameon=False, fontsize=_TICK_SIZE, labelcolor=INK)
    if epsilon is not None:
        spent: Axes = grid[1, 0]
        steps, values = _finite_points("epsilon", points=epsilon)
        spent.plot(steps, values, color=INK, linewidth=1.8)
        if target_epsilon is not None:
            spent.axhline(target_epsilon, color=BASELINE, linewidth=1.2, linestyle=(0, (5, 3)))
            _label_lines(spent, values={f"target {target_epsilon:g}": target_epsilon}, colour=BASELINE)
        spent.set_ylim(bottom=0)
        spent.set_ylabel("ε spent", fontsize=_LABEL_SIZE, color=INK)
        _style(spent)
    grid[-1, 0].set_xlabel("optimizer step", fontsize=_LABEL_SIZE, color=INK)
    return figure


def _fan(
    axis: Axes,
    *,
    hours: np.ndarray,
    truth: np.ndarray,
    target: np.ndarray,
    samples: np.ndarray,
    baseline: np.ndarray | None,
    baseline_name: str,
) -> None:
    """One panel: (L,) arrays and samples (S, L)."""
    _style(axis)
    low, lower, median, upper, high = np.quantile(samples, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    band: dict[str, Any] = {"color": FORECAST, "linewidth": 0, "where": target}
    axis.fill_between(hours, low, high, alpha=0.16, label="90 % of samples", zorder=2, **band)
    axis.fill_between(hours, lower, upper, alpha=0.32, label="50 % of samples", zorder=2, **band)
    known = np.where(target, np.nan, truth)
    # The truth starts at the last known step, so that the line is not torn where the forecast begins.
    from_context = target | np.append(target[1:], False)
    axis.plot(hours, known, color=MUTED, linewidth=1.3, label="context", zorder=3)
    axis.plot(hours, np.where(from_context, truth, np.nan), color=INK, linewidth=1.5, label="truth", zorder=4)
    if baseline is not None:
        line = np.where(target, baseline, np.nan)
        axis.plot(
            hours, line, color=BASELINE, linewidth=1.4, linestyle=(0, (4, 2)), label=baseline_name, zorder=4
        )
    axis.plot(
        hours, np.where(target, median, np.nan), color=FORECAST, linewidth=1.9, label="median", zorder=5
    )
    # A single step has no line through it: bars and markers show it.
    alone = target & ~np.append(False, target[:-1]) & ~np.append(target[1:], False)
    if alone.any():
        at = hours[alone]
        axis.vlines(at, low[alone], high[alone], color=FORECAST, alpha=0.25, linewidth=2.4, zorder=2)
        axis.vlines(at, lower[alone], upper[alone], color=FORECAST, alpha=0.5, linewidth=2.4, zorder=2)
        marker: dict[str, Any] = {"linestyle": "none", "markersize": 3.6, "zorder": 6}
        if baseline is not None:
            axis.plot(at, baseline[alone], marker="_", color=BASELINE, **marker)
        axis.plot(at, truth[alone], marker="x", color=INK, **marker)
        axis.plot(at, median[alone], marker="o", color=FORECAST, **marker)
    axis.axvline(0, color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
    step = hours[1] - hours[0] if len(hours) > 1 else 1.0
    axis.set_xlim(hours[0], hours[-1] + step)


def _figure(*, width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=_TITLE_SIZE, color=INK, fontweight="bold")
    return figure


def _style(axis: Axes) -> None:
    axis.grid(True, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=INK, labelsize=_TICK_SIZE, color=MUTED, length=3)


def _legend_below(figure: Figure, *, handles: Sequence[Any], labels: Sequence[str]) -> None:
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(len(labels), int(figure.get_figwidth() / 1.7))),
        frameon=False,
        fontsize=_TICK_SIZE + 0.5,
        labelcolor=INK,
    )


def _break_between(left: Axes, right: Axes) -> None:
    """Two slanted strokes where the axis jumps to ∞."""
    right.spines["left"].set_visible(False)
    right.tick_params(axis="y", length=0)
    stroke: dict[str, Any] = {
        "marker": [(-0.5, -1), (0.5, 1)],
        "markersize": 8,
        "linestyle": "none",
        "color": MUTED,
        "markeredgecolor": MUTED,
        "clip_on": False,
    }
    left.plot([1], [0], transform=left.transAxes, **stroke)
    right.plot([0], [0], transform=right.transAxes, **stroke)


def _label_lines(axis: Axes, *, values: Mapping[str, float], colour: str = MUTED) -> None:
    """Name horizontal lines at the right edge; labels that would overlap are pushed apart."""
    if not values:
        return
    to_axes = axis.transScale + axis.transLimits
    names = sorted(values, key=values.__getitem__)
    heights = [float(to_axes.transform((1.0, values[name]))[1]) for name in names]
    # In axes units: one line of text on an axis of ordinary height.
    gap = 0.055
    for lower in range(len(heights) - 1):
        heights[lower + 1] = max(heights[lower + 1], heights[lower] + gap)
    for name, height in zip(names, heights, strict=True):
        axis.annotate(
            name,
            xy=(1, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=_TICK_SIZE,
            color=colour,
            annotation_clip=False,
        )


def _pick(chosen: Sequence[int] | None, *, available: int, field: str, spread: bool) -> list[int]:
    if chosen is None:
        count = min(3, available)
        picked = np.linspace(0, available - 1, count).round() if spread else np.arange(count)
        return [int(index) for index in picked]
    for index in chosen:
        if not 0 <= index < available:
            raise ValueError(f"{field} names {index}; there are {available}, counted from 0.")
    if not chosen:
        raise ValueError(f"{field} is empty; name at least one or leave it out.")
    return list(chosen)


def _hour_ticks(hours: np.ndarray) -> np.ndarray:
    """At most about eight ticks at multiples of 6, 12, 24, 48 … hours."""
    span = hours[-1] - hours[0]
    end = hours[-1] + (hours[1] - hours[0] if len(hours) > 1 else 0.0)
    step = next((size for size in (1, 3, 6, 12, 24, 48, 96, 168) if span / size <= 8), span / 6)
    return np.arange(math.ceil(hours[0] / step) * step, end + 1e-9, step)


def _epsilon(row: Mapping[str, Any]) -> float:
    return math.inf if row["epsilon"] is None else float(row["epsilon"])


def _error_bars(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(row.get("se") or 0.0) for row in rows]


def _finite_points(name: str, *, points: tuple[ArrayLike, ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = (np.asarray(_numpy(part), dtype=float) for part in points)
    if steps.shape != values.shape:
        raise ValueError(
            f"curve {name!r} has {steps.shape} steps and {values.shape} values; they must match."
        )
    keep = np.isfinite(steps) & np.isfinite(values)
    return steps[keep], values[keep]


def _running_median(values: np.ndarray, *, width: int) -> np.ndarray:
    """Centred; the window shrinks at both ends so that the curve keeps its length."""
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _numpy(array: Any) -> np.ndarray:
    """Tensors on any device come along; bf16 has no numpy type and is widened."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if array.dtype.is_floating_point:
            array = array.float()
    return np.asarray(array)
