"""`lightning-dp report`: runs side by side at equal ε, with the baselines they have to beat."""

import argparse
from pathlib import Path

from lightning_dp.tracking.results import compare, figure, markdown, read_results


def main(argv: list[str]) -> int:
    """Print one table per data set."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp report",
        description="Compare finished runs: mean ± standard error over runs of the same method and ε.",
        epilog="example: lightning-dp report runs/demo --plot mse.png --metric mse",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold runs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the metric against ε")
    parser.add_argument("--metric", default="mse", help="what to draw (default mse)")
    arguments = parser.parse_args(argv)
    rows = compare(read_results(arguments.runs))
    print(markdown(rows))
    if arguments.plot:
        figure(rows, metric=arguments.metric).savefig(arguments.plot, dpi=120)
        print(f"\n{arguments.plot}")
    return 0
