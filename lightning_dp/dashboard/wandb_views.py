"""The dashboard's views as a W&B workspace and a W&B report.

Axes are the plain names that runs log: `epsilon` in the summary is what was spent; `method`, `dataset`,
`seed`, `unit` and `saliency_ratio` are in the config. What is `nonprivate/` is in W&B only where a run shared
it, so its section is closed and says so. Building a view asks no server; `save` of the result does.
"""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from lightning_dp.tracking.results import better, metric_label

TITLE = "Quality against ε"
_EPSILON = reports.SummaryMetric("epsilon")
_METHOD = reports.Config("method")
_STEP = "trainer/global_step"
_LEGEND = "${config:method}, ε ${summary:epsilon}, seed ${config:seed}"
_FIGURES = ["plots/forecast_fan", "plots/imputation_fan", "plots/synthesis", "plots/sample_grid"]
_PRIVATE_FIGURES = ["nonprivate/gradient_ecdf", "nonprivate/gradient_ccdf", "nonprivate/gradient_quantiles"]


def make_workspace(
    metrics: Sequence[str], *, entity: str, project: str, name: str = TITLE
) -> workspaces.Workspace:
    """The views as a workspace, not saved yet.

    Args:
        metrics: of the test split, without `test/`; the first one leads.
        entity, project: where in W&B.
        name: of the workspace.

    Raises:
        ValueError: no metric, or one twice.
    """
    _check(metrics)
    sections = [
        workspaces.Section(name=title, panels=panels, is_open=is_open)
        for title, panels, is_open in _sections(metrics)
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=_STEP),
        runset_settings=workspaces.RunsetSettings(
            order=[workspaces.Ordering(workspaces.Config("epsilon"), ascending=True)],
            pinned_columns=[
                "config:dataset",
                "config:method",
                "summary:epsilon",
                "config:unit",
                "config:seed",
                *(f"summary:{_test(metric)}" for metric in metrics),
            ],
        ),
    )


def make_report(metrics: Sequence[str], *, entity: str, project: str, title: str = TITLE) -> reports.Report:
    """The same views as a report with a few words to each, not saved yet; see `make_workspace`."""
    _check(metrics)
    words = {
        "Quality": "Methods are compared at equal ε per privacy unit. Smaller ε is more private; runs "
        "without privacy have ε = ∞ and no place on the axis. Bars are means over runs of a method, whatever "
        "their ε: filter for one.",
        "Saliency ratio": "How much of a network is worth training privately.",
        "Training": "ε spent so far; a run stops before it would spend more than its target.",
        "Figures": "Only figures that may leave the machine they were made on.",
        "Nonprivate": "Computed from private data without noise: no ε covers it. Empty unless shared.",
    }
    blocks: list[Any] = [reports.TableOfContents()]
    for name, panels, _ in _sections(metrics):
        runset = reports.Runset(entity=entity, project=project)
        blocks += [
            reports.H1(name),
            reports.P(words[name]),
            reports.PanelGrid(runsets=[runset], panels=panels),
        ]
    return reports.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


def _sections(metrics: Sequence[str]) -> list[tuple[str, list[Any], bool]]:
    """(name, panels, whether it is open)."""
    quality: list[Any] = []
    for metric in metrics:
        direction = f", {better(metric)} is better" if better(metric) else ""
        quality += [
            reports.ScatterPlot(
                title=f"{metric_label(metric)} against ε{direction}",
                x=_EPSILON,
                y=reports.SummaryMetric(_test(metric)),
                log_x=True,
                legend_template=_LEGEND,
                layout=reports.Layout(w=12, h=8),
            ),
            reports.BarPlot(
                title=f"{metric_label(metric)} by method",
                metrics=[reports.SummaryMetric(_test(metric))],
                groupby=_METHOD,
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                layout=reports.Layout(w=12, h=8),
            ),
        ]
    axes: list[Any] = [_METHOD, _EPSILON, reports.Config("seed")]
    axes += [reports.SummaryMetric(_test(metric)) for metric in metrics]
    columns = [reports.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
    quality.append(reports.ParallelCoordinatesPlot(columns=columns, title="All runs"))
    saliency = [
        reports.ScatterPlot(
            title=f"{metric_label(metric)} against the saliency ratio",
            x=reports.Config("saliency_ratio"),
            y=reports.SummaryMetric(_test(metric)),
            legend_template=_LEGEND,
            layout=reports.Layout(w=12, h=8),
        )
        for metric in metrics
    ]
    return [
        ("Quality", quality, True),
        ("Saliency ratio", saliency, True),
        ("Training", [reports.LinePlot(title="ε spent", x=_STEP, y=["privacy/epsilon"])], True),
        ("Figures", [reports.MediaBrowser(title="Figures", media_keys=_FIGURES, num_columns=3)], True),
        (
            "Nonprivate",
            [
                reports.LinePlot(title="nonprivate/train_loss", x=_STEP, y=["nonprivate/train_loss"]),
                reports.MediaBrowser(title="nonprivate/ gradient tails", media_keys=_PRIVATE_FIGURES),
            ],
            False,
        ),
    ]


def _test(metric: str) -> str:
    return f"test/{metric}"


def _check(metrics: Sequence[str]) -> None:
    if not metrics or len(set(metrics)) != len(metrics):
        raise ValueError(f"metrics is {list(metrics)}; it must name at least one metric, and each once")
