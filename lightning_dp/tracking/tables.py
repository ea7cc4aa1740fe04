"""Comparisons as text: one table per data set and task, in Markdown or in LaTeX (booktabs)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from lightning_dp.tracking.paired import PairedTest
from lightning_dp.tracking.results import Row, epsilon_text, metric_label, metrics_in_order, round_epsilon

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "∞": r"$\infty$",
    "≈": r"$\approx$",
    "−": r"$-$",
    "→": r"$\to$",
    "·": r"$\cdot$",
    "<": r"$<$",
    ">": r"$>$",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells.

    Attributes:
        title: what it is about.
        header: column names.
        cells: rows of as many texts.
        notes: sentences to go below it.
    """

    title: str
    header: list[str]
    cells: list[list[str]]
    notes: tuple[str, ...] = ()


def comparison_tables(rows: Sequence[Row], *, only: Collection[str] = ()) -> list[Table]:
    """Mean ± standard error of every metric, or of `only` some; one table per data set and task."""
    tables = []
    for dataset, task in dict.fromkeys((row.dataset, row.task) for row in rows):
        own = [row for row in rows if (row.dataset, row.task) == (dataset, task)]
        metrics = metrics_in_order(name for row in own for name in row.mean if not only or name in only)
        units = {row.unit for row in own if row.unit}
        several = len(units) > 1
        per_unit = f" per {next(iter(units))}" if len(units) == 1 else ""
        tables.append(
            Table(
                title=" · ".join(filter(None, (dataset, task))),
                header=[
                    "method",
                    f"ε{per_unit}",
                    *(["unit"] if several else []),
                    "ε per event",
                    "runs",
                    *map(metric_label, metrics),
                ],
                cells=[
                    [
                        row.method,
                        "≈ 0" if not row.unit and row.epsilon == 0 else epsilon_text(row.epsilon),
                        *([row.unit] if several else []),
                        "" if not row.unit else epsilon_text(row.epsilon_of_event),
                        str(row.runs),
                        *(_with_error(row, name) for name in metrics),
                    ]
                    for row in own
                ],
            )
        )
    return tables


def paired_table(tests: Sequence[PairedTest], *, metric: str) -> Table:
    """Paired tests as a table; p values are Holm's, over all rows of the table."""
    header = ["data set", "ε", "A − B", "pairs", "difference", "95 % CI", "t-test p", "Wilcoxon p", "note"]
    return Table(
        title=f"Paired tests of {metric_label(metric)}, runs of equal ε paired by seed",
        header=header,
        cells=[
            [
                " · ".join(filter(None, (test.dataset, test.task))),
                epsilon_text(round_epsilon(test.epsilon)),
                f"{test.first} − {test.second}",
                str(test.pairs),
                _signed(test.difference),
                ""
                if test.interval is None
                else f"{_signed(test.interval[0])} to {_signed(test.interval[1])}",
                _p_value(test.p_t),
                _p_value(test.p_wilcoxon),
                test.note,
            ]
            for test in tests
        ],
        notes=(
            "p values are two-sided and corrected by Holm for all rows of this table, each test by itself.",
            "Seeds vary training, not the data: the interval says nothing about other data sets.",
        ),
    )


def shortened(table: Table, *, lines: int) -> Table:
    """The first lines of a table, and how many more there are."""
    left = len(table.cells) - lines
    if left <= 0:
        return table
    note = f"{left} more lines are left out: --lines shows them, fewer folders have fewer."
    return replace(table, cells=table.cells[:lines], notes=(*table.notes, note))


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(map(_markdown, tables))


def latex(tables: Sequence[Table]) -> str:
    r"""The tables as LaTeX; the preamble needs \usepackage{booktabs}."""
    return "\n\n".join(map(_latex, tables))


def _markdown(table: Table) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in [table.header, *table.cells]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(table.header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    notes = ["", *table.notes] if table.notes else []
    return "\n".join([f"### {table.title}", "", lines[0], rule, *lines[1:], *notes])


def _latex(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return " & ".join(map(_escape, cells)) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_escape(' '.join([table.title + '.', *table.notes]))}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"    \toprule",
            "    " + line(table.header),
            r"    \midrule",
            *("    " + line(cells) for cells in table.cells),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _with_error(row: Row, name: str) -> str:
    if name not in row.mean:
        return ""
    error = row.se[name]
    return f"{row.mean[name]:.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
