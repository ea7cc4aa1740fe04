"""The scores by which an adapter chose what to train."""

from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lightning_dp.tracking.palette import FORECAST, GRID, INK, MUTED


def selection_figure(report: Mapping[str, Any]) -> Figure:
    """A bar for each candidate, from the network's input to its output; those that train stand out.

    Args:
        report: an adapter's: `score`, `noise` (standard deviation, or None) and `matrices`, each with `name`,
            `score` and `chosen`.
    """
    matrices = report["matrices"]
    places = range(len(matrices))
    figure = Figure(figsize=(7.0, 1.5 + 0.2 * len(matrices)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.barh(
        places,
        [matrix["score"] for matrix in matrices],
        color=[FORECAST if matrix["chosen"] else MUTED for matrix in matrices],
        xerr=report["noise"],
        error_kw={"ecolor": INK, "elinewidth": 0.8},
    )
    axis.set_yticks(places, [matrix["name"] for matrix in matrices], fontsize=7.5, color=INK)
    axis.set_ylim(len(matrices) - 0.4, -0.6)
    axis.grid(axis="x", color=GRID)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0)
    noise = "" if report["noise"] is None else f", ± its noise of {report['noise']:.3g}"
    axis.set_xlabel(f"score ({report['score']}){noise}", fontsize=9, color=INK)
    number = sum(matrix["chosen"] for matrix in matrices)
    axis.set_title(f"{number} of {len(matrices)} matrices train", fontsize=11, loc="left", color=INK)
    legend = [Patch(color=FORECAST, label="trains"), Patch(color=MUTED, label="frozen")]
    figure.legend(handles=legend, loc="outside upper right", ncols=2, frameon=False, fontsize=8.5)
    return figure
