"""A privacy report as Markdown."""

import re

from lightning_dp.privacy.report.document import PrivacyReport
from lightning_dp.privacy.report.sections import Section, headline_of, sections_of, summary_of, title_of

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def to_markdown(report: PrivacyReport) -> str:
    """The whole file; whatever names and notes hold stands there as text."""
    parts = [f"# {escaped(title_of(report))}", f"**{escaped(headline_of(report))}**"]
    parts += [escaped(sentence) for sentence in summary_of(report)]
    for section in sections_of(report):
        parts += _section(section)
    parts.append(f"*{MADE}*")
    return "\n\n".join(parts) + "\n"


MADE = "Made of the signed JSON report beside this file, which `lightning-dp verify` checks together with it."


def escaped(text: str) -> str:
    """Text without line ends, with no character that Markdown or HTML gives a meaning."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _section(section: Section) -> list[str]:
    parts = [f"## {escaped(section.title)}"]
    if section.lines:
        parts.append("\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in section.lines))
    if section.table:
        rows = [section.table.columns, ("---",) * len(section.table.columns), *section.table.rows]
        parts.append(
            "\n".join(
                f"| {' | '.join(cell if cell == '---' else escaped(cell) for cell in row)} |" for row in rows
            )
        )
    if section.points:
        parts.append("\n".join(f"- {escaped(point)}" for point in section.points))
    return parts
