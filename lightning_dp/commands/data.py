"""`lightning-dp data check`: what a table holds, as a fit would read it, and nothing else."""

import json
import tempfile
from pathlib import Path
from typing import Any

_EPILOG = """what is printed names customers and is covered by no ε: it is for whoever may see the data

exit status: 0 the table can be read, 2 it can't, and the file, the line and what to do are named

examples:
  lightning-dp data check readings.csv
  lightning-dp data check 'readings/*.csv' --id meter --time time --target kwh --reading.decimal ,
  lightning-dp data check load.parquet --wide --time stamp
  lightning-dp data check my.yaml     # as its section `data` says; a fit then finds the table converted
"""


def main(argv: list[str]) -> int:
    """Print what was found; raise ValueError where the table can't be right."""
    # Late: --help of other commands should not wait for it.
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    from lightning_dp.timeseries.data.own_table.ids import NearlyAlike
    from lightning_dp.timeseries.data.own_table.reading import Reading

    class Raw(DefaultHelpFormatter):
        """Leaves the lines of the examples as they are."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text

    parser = ArgumentParser(
        prog="lightning-dp data",
        usage="lightning-dp data check PATH|CONFIG [options]",
        description="Read a table as a fit would, and tell what is in it: span, customers, gaps, rounding.",
        epilog=_EPILOG,
        formatter_class=Raw,
        exit_on_error=False,
    )
    parser.add_argument("action", choices=["check"], help="look at a table")
    parser.add_argument(
        "path", metavar="PATH|CONFIG", help="a .csv or .parquet file, a folder, a pattern, or YAML of fit"
    )
    parser.add_argument("--id", default=None, help="column of the customer")
    parser.add_argument("--time", default=None, help="column of the stamp")
    parser.add_argument("--target", nargs="+", default=[], help="columns of measurements, or of customers")
    parser.add_argument("--wide", action="store_true", help="one column is one customer")
    parser.add_argument(
        "--ignore", nargs="+", default=[], help="columns of a wide table that are no customers"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, in which nobody is named")
    parser.add_class_arguments(Reading, "reading")
    arguments = _parsed(parser, argv)
    try:
        if Path(arguments.path).suffix in (".yaml", ".yml"):
            report = _of_configuration(Path(arguments.path))
        else:
            report = _of_files(arguments, reading=parser.instantiate_classes(arguments).reading)
    except NearlyAlike as error:
        for group in error.groups:
            print(f"nearly alike: {' and '.join(map(repr, group))}")
        raise
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(report.to_text(), end="")
    return 0


def _parsed(parser: Any, argv: list[str]) -> Any:
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        raise ValueError(f"{str(error).strip()}: see lightning-dp data --help.") from None


def _of_configuration(path: Path) -> Any:
    from lightning_dp.commands.data_content import data_module_of
    from lightning_dp.timeseries.data.table import Table

    data = data_module_of(path)
    if not isinstance(data, Table):
        raise ValueError(f"{path} reads {type(data).__name__}, which is no table of one's own.")
    return data.found()


def _of_files(arguments: Any, *, reading: Any) -> Any:
    from lightning_dp.data_files import cache_folder
    from lightning_dp.timeseries.data.own_table.convert import convert
    from lightning_dp.timeseries.data.own_table.files import find_files, left_out
    from lightning_dp.timeseries.data.own_table.guess import guess_layout
    from lightning_dp.timeseries.data.own_table.layout import Long

    files = find_files(
        arguments.path,
        delimiter=reading.delimiter,
        encoding=reading.encoding,
        skip_lines=reading.skip_lines,
    )
    layout = guess_layout(
        files[0],
        reading=reading,
        id_column=arguments.id,
        time_column=arguments.time,
        targets=arguments.target,
        ignored=arguments.ignore,
        wide=arguments.wide,
    )
    if not arguments.json:
        who = f"id {layout.id_column!r}, " if isinstance(layout, Long) else "one column a customer, "
        print(f"columns            {who}time {layout.time_column!r}, values {layout.channel_names}")
    root = cache_folder() / "tables"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        report = convert(files, layout=layout, reading=reading, folder=Path(folder))
    report.left_out = left_out(arguments.path)
    return report
