"""`lightning-dp forecast`: what follows each series' last reading, as a table that joins to the input."""

import argparse
from pathlib import Path

from lightning_dp.tracking.run_config import add_trust

_DESCRIPTION = """\
Predict what follows each series' last reading (or a stamp), or what is missing between readings. The table
has the input's own columns of ids and stamps, spelled as there, so that it joins to the input by them.
Covariates of the future come from rows that have them and no reading yet.

The weights are paid for: a forecast costs no further ε. The rows that it continues are read as they are, and
no ε covers them; FILE.privacy.json says so, and names the series that were left out and why.
"""
_EPILOG = """\
examples:
  lightning-dp forecast runs/meters --data new.csv --output tomorrow.csv
  lightning-dp forecast runs/meters --from 2024-06-01 --quantiles 0.05 0.5 0.95 --wide --output june.parquet
  lightning-dp forecast runs/gaps --fill-missing --samples 20 --output filled.csv
from Python: lightning_dp.load_run("runs/meters").forecast("new.csv", quantiles=[0.1, 0.5, 0.9])
"""


def main(argv: list[str]) -> int:
    """Write the forecast and its privacy report."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp forecast",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="rows to continue: a .csv or .parquet file (a folder or pattern of some) with the columns of "
        "the run's own table, or a .yaml file whose section data says how they are read (default: the run's "
        "own data)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="LAST",
        metavar="LAST|STAMP",
        help="predict from the step after each series' last reading (LAST, the default), or from this stamp "
        "on, whatever follows it",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--quantiles", type=float, nargs="+", metavar="Q", help="to write (default 0.1 0.5 0.9)"
    )
    what.add_argument("--samples", type=int, metavar="N", help="write N draws instead of quantiles")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--long", action="store_true", help="one row for each quantile or draw of a stamp (the default)"
    )
    shape.add_argument(
        "--wide", action="store_true", help="one row a stamp, with a column for each quantile or draw"
    )
    parser.add_argument(
        "--fill-missing",
        action="store_true",
        help="of a run that imputes: predict what is missing between the first reading and the last",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .csv or .parquet file")
    parser.add_argument("--seed", type=int, help="of the draws; they may be repeated without harm")
    parser.add_argument("--steps", type=int, help="of the sampler (default the run's)")
    add_trust(parser)
    arguments = parser.parse_args(argv)
    start = None if arguments.start.upper() == "LAST" else arguments.start
    if start is not None and arguments.fill_missing:
        raise ValueError("--from is of forecasts; --fill-missing fills every gap between two readings.")

    # Late: --help should not wait for the accountant, nor a folder that can't be right for torch.
    from lightning_dp.runs.abilities import ForecastRequest
    from lightning_dp.runs.load import load_run

    run = load_run(arguments.run)
    forecaster = run.forecaster
    run.set_sampling(num_steps=arguments.steps)
    request = ForecastRequest(
        data=arguments.data,
        start=start,
        quantiles=arguments.quantiles,
        num_samples=arguments.samples,
        wide=arguments.wide,
        fill_missing=arguments.fill_missing,
        seed=arguments.seed,
    )
    print("\n".join(forecaster.write_forecast(request, output=arguments.output, run=run)))
    return 0
