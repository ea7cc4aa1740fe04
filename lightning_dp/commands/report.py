"""`lightning-dp report`: runs side by side at equal ε, with the baselines they have to beat."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_dp.tracking.gradient_ratios import ratio_tables, read_diagnostics
from lightning_dp.tracking.paired import TooManyPairs, paired_tests
from lightning_dp.tracking.results import (
    compare,
    figure,
    metrics_in_order,
    read_results,
    repeated_seeds,
    unsigned_reports,
)
from lightning_dp.tracking.tables import Table, comparison_tables, latex, markdown, paired_table, shortened

_FORMATS = {"markdown": markdown, "latex": latex}


def main(argv: list[str]) -> int:
    """Print one table per data set and task, and one of paired tests where there are pairs."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp report",
        description="Compare finished runs: mean ± standard error over runs of the same method and ε, "
        "and paired tests of methods at equal ε.",
        epilog="examples:\n  lightning-dp report runs/demo --columns mse crps --format latex\n"
        "  lightning-dp report runs/vanilla runs/medium --gradients gradients.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold runs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the metric against ε")
    parser.add_argument(
        "--gradients",
        type=Path,
        metavar="FILE",
        help="of two run folders with diagnostics.json, the gradient norms of the second over the first's "
        "(ρ_emp, ρ_cond) and the share of each path of the condition, as tables and as this figure; "
        "nothing else",
    )
    parser.add_argument("--metric", help="what to test and to draw (default: mse, or the first there is)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="METRIC", help="of the tables (default: every metric)"
    )
    parser.add_argument(
        "--lines", type=int, default=200, metavar="N", help="most lines of a table (default 200)"
    )
    parser.add_argument("--format", choices=list(_FORMATS), default="markdown", help="of the tables")
    arguments = parser.parse_args(argv)
    if arguments.gradients:
        return _gradients(arguments.runs, arguments.gradients, text=_FORMATS[arguments.format])
    if arguments.lines < 1:
        raise ValueError(f"--lines is {arguments.lines}; a table has at least 1")
    damaged: list[str] = []
    results = read_results(arguments.runs, on_damaged=damaged.append)
    metrics = metrics_in_order(name for result in results for name in result.scores)
    metric = arguments.metric or next(iter(metrics), "mse")
    for name in [*arguments.columns, *([arguments.metric] if arguments.metric else [])]:
        if name not in metrics:
            raise ValueError(f"no run has the metric {name!r}; choose one of {', '.join(metrics) or 'none'}")
    rows = compare(results)
    tables = comparison_tables(rows, only=arguments.columns)
    sentences = damaged + unsigned_reports(results) + repeated_seeds(rows)
    try:
        if tests := paired_tests(results, metric=metric):
            tables.append(paired_table(tests, metric=metric))
    except TooManyPairs as error:
        sentences.append(str(error))
    print(_FORMATS[arguments.format]([shortened(table, lines=arguments.lines) for table in tables]))
    for sentence in sentences[: arguments.lines]:
        print(f"lightning-dp report: {sentence}", file=sys.stderr)
    if len(sentences) > arguments.lines:
        print(f"lightning-dp report: and {len(sentences) - arguments.lines} more", file=sys.stderr)
    if arguments.plot:
        figure(rows, metric=metric).savefig(arguments.plot, dpi=120)
        print(f"\n{arguments.plot}")
    return 1 if damaged else 0


def _gradients(runs: Sequence[Path], path: Path, *, text: Callable[[Sequence[Table]], str]) -> int:
    """Print ρ of two runs and draw it."""
    from lightning_dp.tracking.gradient_figures import norms_ratio  # late: tables need no matplotlib

    names = [run.resolve().name for run in runs]
    if len(runs) != 2 or names[0] == names[1]:
        raise ValueError(
            f"--gradients compares two run folders of different names, not {', '.join(names)}: give the one "
            "that is divided by first"
        )
    reports = {name: read_diagnostics(run) for name, run in zip(names, runs, strict=True)}
    print(text(ratio_tables(reports)))
    norms_ratio(reports).savefig(path)
    print(f"\n{path}")
    return 0
