"""`lightning-dp report`: runs side by side at equal ε, with the baselines they have to beat."""

import argparse
from pathlib import Path

from lightning_dp.tracking.results import compare, markdown, read_results


def main(argv: list[str]) -> int:
    """Print one table per data set."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp report",
        description="Compare finished runs: mean ± standard error over runs of the same method and ε.",
        epilog="example: lightning-dp report runs/demo",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold runs")
    arguments = parser.parse_args(argv)
    print(markdown(compare(read_results(arguments.runs))))
    return 0
