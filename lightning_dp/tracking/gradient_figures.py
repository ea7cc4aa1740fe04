"""Figures of `diagnostics.json`: distributions and tails of per-unit gradient norms, one run or several.

Drawing only: reports in, a matplotlib `Figure` out. Whoever draws them for private data keeps them private.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_dp.tracking.figures import _LABEL_SIZE, _TICK_SIZE, _figure, _legend_below, _style
from lightning_dp.tracking.gradient_ratios import NAMES, gradient_ratios, paths_of, ratio_by_step
from lightning_dp.tracking.palette import INK, MUTED, method_styles, style_of_curve

_HEADINGS = {"all": "all parameters", "cond": "θ_cond: the condition's path", "other": "θ_other: all else"}
Reports = Mapping[str, Mapping[str, Any]]


def norms_ecdf(reports: Reports) -> Figure:
    """Share of unit gradients with a norm up to x, in a panel per partition.

    Args:
        reports: contents of `diagnostics.json` by the name of the run; "" leaves a single one unnamed.
    """
    figure, axes, partitions = _panels(reports, title="Norms of unit gradients")
    for axis, partition in zip(axes, partitions, strict=True):
        for name, found, style in _curves(reports, partition):
            axis.plot(found["ecdf"]["norm"], found["ecdf"]["share"], label=name, **style)
        axis.set_ylim(0, 1.02)
    axes[0].set_ylabel("share of units with norm ≤ x", fontsize=_LABEL_SIZE, color=INK)
    return _finished(figure, axes, reports=reports)


def norms_ccdf(reports: Reports) -> Figure:
    """Share of unit gradients with a norm beyond x, on logarithmic axes: a straight end is a power-law tail.

    Each panel names the tail index of its runs with the 95 % interval.
    """
    figure, axes, partitions = _panels(reports, title="Tails of unit gradients' norms")
    for axis, partition in zip(axes, partitions, strict=True):
        lines = []
        for name, found, style in _curves(reports, partition):
            beyond = 1 - np.asarray(found["ecdf"]["share"])
            axis.plot(found["ecdf"]["norm"], beyond, label=name, **style)
            tail = found["tail_index"]
            if tail is not None:
                index = f"α = {tail['alpha']:.2f} [{tail['low']:.2f}, {tail['high']:.2f}]"
                lines.append(f"{name}: {index}" if name else index)
        axis.set_yscale("log")
        axis.text(
            0.03,
            0.03,
            "\n".join(lines),
            transform=axis.transAxes,
            fontsize=_TICK_SIZE,
            color=INK,
            va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
        )
    axes[0].set_ylabel("share of units with norm > x", fontsize=_LABEL_SIZE, color=INK)
    return _finished(figure, axes, reports=reports)


def norms_over_steps(reports: Reports) -> Figure:
    """Median (solid) and 99 % quantile (dashed) of the norms at each observed step."""
    figure, axes, partitions = _panels(reports, title="Norms of unit gradients over training")
    for axis, partition in zip(axes, partitions, strict=True):
        for name, _, style in _curves(reports, partition):
            steps = reports[name]["steps"]
            middle, high = steps[partition]["p50"], steps[partition]["p99"]
            single = len(steps["step"]) == 1  # a line of one point would be invisible
            marker: dict[str, Any] = {"marker": "o", "markersize": 4} if single else {}
            label = f"{name}, " if name else ""
            axis.plot(steps["step"], middle, label=f"{label}median", **style, **marker)
            axis.plot(
                steps["step"], high, label=f"{label}p99", **{**style, "linestyle": (0, (4, 2))}, **marker
            )
            if len(reports) == 1:
                axis.fill_between(steps["step"], middle, high, color=style["color"], alpha=0.12, linewidth=0)
        axis.set_yscale("log")
        axis.set_xlabel("optimizer step", fontsize=_LABEL_SIZE, color=INK)
    axes[0].set_ylabel("norm", fontsize=_LABEL_SIZE, color=INK)
    return _finished(figure, axes, reports=reports, horizontal=True)


def norms_ratio(reports: Reports) -> Figure:
    """The ratio ρ of two runs' 99 % quantiles at each step, and how ‖g‖² is shared out in both.

    Args:
        reports: two contents of `diagnostics.json`, the one that is divided by first.
    """
    (one, first), (other, second) = reports.items()
    private = "private" in (first["mode"], second["mode"])
    note = "  (raw private statistics: no ε covers them)" if private else ""
    figure = _figure(width=11.0, height=4.2, title=f"Unit gradients, {other} over {one}{note}")
    over_steps, shares = figure.subplots(1, 2, width_ratios=[3, 2])
    pooled = {
        r.partition: r.pooled
        for r in gradient_ratios(first, second)
        if r.level == "p99" and r.partition != "other"
    }
    for number, (partition, value) in enumerate(pooled.items()):
        steps, ratio = ratio_by_step(first, second, partition=partition, level="p99")
        color = style_of_curve(number).light
        marker = {"marker": style_of_curve(number).marker, "markersize": 3.5}
        label = f"{NAMES[partition]}, {_HEADINGS[partition].partition(':')[0]}: {value:.3f} over all steps"
        over_steps.plot(steps, ratio, color=color, linewidth=1.6, label=label, **marker)
    over_steps.axhline(1, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.5)))
    over_steps.set_xlabel("optimizer step", fontsize=_LABEL_SIZE, color=INK)
    over_steps.set_ylabel("ratio of the 99 % quantiles", fontsize=_LABEL_SIZE, color=INK)
    paths = paths_of(first, second)
    styles = method_styles(reports)
    for number, (name, report) in enumerate(reports.items()):
        values = [100 * report["paths"].get(path, {"mean": 0.0})["mean"] for path in paths]
        places = np.arange(len(paths)) + (number - 0.5) * 0.4
        bars = shares.barh(places, values, height=0.36, color=styles[name].light, label=name)
        shares.bar_label(bars, fmt="%.1f", padding=2, fontsize=_TICK_SIZE, color=INK)
    shares.set_yticks(np.arange(len(paths)), ["θ_other" if path == "other" else path for path in paths])
    shares.invert_yaxis()
    shares.margins(x=0.12)
    shares.set_xlabel("share of ‖g‖² by path, %", fontsize=_LABEL_SIZE, color=INK)
    for axis in (over_steps, shares):
        _style(axis)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
        axis.legend(frameon=False, fontsize=_TICK_SIZE, labelcolor=INK, **below)
    return figure


def _panels(reports: Reports, *, title: str) -> tuple[Figure, Sequence[Axes], list[str]]:
    if not reports:
        raise ValueError("reports is empty: hand over the diagnostics of at least one run")
    partitions = [p for p in _HEADINGS if any(p in report["partitions"] for report in reports.values())]
    private = any(report["mode"] == "private" for report in reports.values())
    note = "  (raw private statistics: no ε covers them)" if private else ""
    figure = _figure(width=1.0 + 3.5 * max(2, len(partitions)), height=3.7, title=title + note)
    axes = figure.subplots(1, len(partitions), squeeze=False, sharex=True, sharey=True)[0]
    for axis, partition in zip(axes, partitions, strict=True):
        _style(axis)
        axis.set_title(_HEADINGS[partition], fontsize=_LABEL_SIZE, color=INK)
    return figure, axes, partitions


def _curves(reports: Reports, partition: str) -> list[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """(run, its numbers, its line) of the runs that have this partition."""
    styles = method_styles(reports)
    return [
        (name, report["partitions"][partition], {"color": styles[name].light, "linewidth": 1.6})
        for name, report in reports.items()
        if partition in report["partitions"]
    ]


def _finished(figure: Figure, axes: Sequence[Axes], *, reports: Reports, horizontal: bool = False) -> Figure:
    """Log scale of the norm, the bound C where all runs share one, and a legend."""
    bounds = {report["max_grad_norm"] for report in reports.values()}
    whole = axes[0]
    if len(bounds) == 1:
        draw = whole.axhline if horizontal else whole.axvline
        draw(bounds.pop(), color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.5)), label="clipping bound C")
    if not horizontal:
        for axis in axes:
            axis.set_xscale("log")
            axis.set_xlabel("norm x of a unit's gradient", fontsize=_LABEL_SIZE, color=INK)
    handles, labels = whole.get_legend_handles_labels()
    named = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    _legend_below(figure, handles=[handle for handle, _ in named], labels=[label for _, label in named])
    return figure
