"""`lightning-dp dashboard`: a static site over run folders."""

import argparse
import sys
from pathlib import Path

from lightning_dp.dashboard.server import make_server
from lightning_dp.dashboard.site import write_site
from lightning_dp.privacy.ledger import Ledger, default_ledger_path

_USUAL = Path()
_EPILOG = """\
example: lightning-dp dashboard runs --out site --ledger --serve

The site opens from the file system and asks no other host for anything. It holds what the run folders
hold, nonprivate/ statistics and figures of private windows included: keep it where the runs are kept, or
write one with --publishable.
"""


def main(argv: list[str]) -> int:
    """Write the site and, if asked, serve it until interrupted."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp dashboard",
        description="Quality against ε, curves, figures, configs and the ledger's accounts of many runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold runs")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the site goes")
    parser.add_argument("--title", default="Runs", help="of the page (default: Runs)")
    parser.add_argument(
        "--ledger",
        nargs="?",
        type=Path,
        const=_USUAL,
        metavar="PATH",
        help="also show the accounts of this ledger; without PATH, of the usual one",
    )
    parser.add_argument(
        "--publishable",
        action="store_true",
        help="leave out nonprivate/ values, figures of real rows, runs without a finite ε, and all of the "
        "configurations that names paths, columns or this machine",
    )
    parser.add_argument("--serve", action="store_true", help="serve the site to this machine")
    parser.add_argument("--port", type=int, default=8787, help="of --serve (default 8787, 0: a free one)")
    arguments = parser.parse_args(argv)
    if arguments.publishable and arguments.ledger is not None:
        raise ValueError(
            "--ledger shows every run of a data set, and --publishable no more than it must: drop one"
        )
    ledger = None
    if arguments.ledger is not None:
        ledger = Ledger(default_ledger_path() if arguments.ledger is _USUAL else arguments.ledger)
    refused: list[str] = []
    count = write_site(
        arguments.runs,
        out=arguments.out,
        ledger=ledger,
        title=arguments.title,
        publishable=arguments.publishable,
        on_refused=refused.append,
    )
    print(f"{count} run{'s' * (count != 1)} in {arguments.out / 'index.html'}")
    for sentence in refused:
        print(f"lightning-dp dashboard: {sentence}", file=sys.stderr)
    if arguments.serve:
        with make_server(arguments.out, port=arguments.port) as server:
            print(f"{server.url}  (for whoever has this address; Ctrl+C ends)", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
    return 1 if refused else 0
