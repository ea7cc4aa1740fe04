"""Two figures of an audit: scores with and without canaries, and errors beside the claimed trade-off curve.

Drawing only: scores in, matplotlib figures out, as in `tracking.figures`. All of them are of made-up units.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_dp.audits.judged import counts_of
from lightning_dp.audits.white_box import Scores
from lightning_dp.privacy.audit.counts import upper_share
from lightning_dp.privacy.audit.curve import curve_of
from lightning_dp.tracking.palette import BASELINE, FORECAST, GRID, INK, MUTED

_TITLES = {
    "step": "in this batch?",
    "run": "in the data at all?",
    "batches": "the same, others' batches known",
    "seed": "the same, the seed known",
}


def score_histograms(all_scores: Sequence[Scores]) -> Figure:
    """A panel per adversary: densities of scores without and with a canary, the threshold at 0."""
    figure, panels = _panels(len(all_scores))
    for axes, scores in zip(panels, all_scores, strict=True):
        kinds = (scores.null, scores.canary)
        low = min(np.quantile(kind, 0.005) for kind in kinds)
        high = max(np.quantile(kind, 0.995) for kind in kinds)
        if low == high:
            low, high = low - 1, high + 1
        bins = np.linspace(low, high, 36 if len(scores.canary) > 300 else 16).tolist()
        for values, colour, label in (
            (scores.null, BASELINE, f"no canary ({len(scores.null):,})"),
            (scores.canary, FORECAST, f"canary ({len(scores.canary):,})"),
        ):
            clipped = np.clip(values, low, high)
            axes.hist(clipped, bins=bins, density=True, color=colour, alpha=0.55, label=label)
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        axes.set_title(f"{scores.adversary}: {_TITLES.get(scores.adversary, '')}", fontsize=10, color=INK)
        axes.set_xlabel("score (dotted: threshold)", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel("density", fontsize=9)
    return figure


def trade_off(all_scores: Sequence[Scores], *, alpha: float) -> Figure:
    """A panel per adversary: errors at every threshold, the claimed curve, and the bounds at the one counted.

    Errors below the shaded curve are impossible under the claim; of sampled scores some lie there by chance,
    so what counts is the corner of the box, the upper bounds of both rates.

    Args:
        all_scores: of an audit.
        alpha: of each box.
    """
    figure, panels = _panels(len(all_scores))
    grid = np.linspace(0, 1, 201)
    for axes, scores in zip(panels, all_scores, strict=True):
        claimed = curve_of(scores.event).fnr(grid)
        axes.fill_between(grid, 0, claimed, color=GRID, alpha=0.6, linewidth=0)
        axes.plot(grid, claimed, color=INK, linewidth=1.4, label="claimed curve")
        thresholds = np.quantile(np.concatenate([scores.null, scores.canary]), np.linspace(0, 1, 400))
        fpr = (scores.null[:, None] > thresholds).mean(axis=0)
        fnr = (scores.canary[:, None] <= thresholds).mean(axis=0)
        axes.plot(fpr, fnr, color=FORECAST, linewidth=1.2, label="errors at every threshold")
        counts = counts_of(scores)
        (x, y) = counts.rates()
        right = upper_share(counts.false_positives, counts.nulls, alpha=alpha / 2)
        top = upper_share(counts.false_negatives, counts.canaries, alpha=alpha / 2)
        axes.plot([x, right, right], [top, top, y], color=MUTED, linewidth=1, linestyle="--")
        axes.plot([x], [y], "o", color=FORECAST, markersize=5, label="counted, and its upper bounds")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_title(f"{scores.adversary}: {_TITLES.get(scores.adversary, '')}", fontsize=10, color=INK)
        axes.set_xlabel("false positive rate", fontsize=9)
        axes.legend(fontsize=7.5, frameon=False, loc="upper right", handlelength=1.4)
    panels[0].set_ylabel("false negative rate", fontsize=9)
    return figure


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.6 * number, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, number, squeeze=False)[0])
    for axes in panels:
        axes.tick_params(labelsize=8, colors=MUTED)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels
