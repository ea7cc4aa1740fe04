"""A privacy report as one HTML page that asks nobody for anything, light and dark, on screen and paper."""

from html import escape
from importlib.resources import files

from lightning_dp.privacy.report.curve import to_svg
from lightning_dp.privacy.report.document import PrivacyReport
from lightning_dp.privacy.report.markdown import MADE
from lightning_dp.privacy.report.sections import Section, headline_of, sections_of, summary_of, title_of


def to_page(report: PrivacyReport) -> str:
    """The whole file; whatever names and notes hold stands there as text."""
    style = (files("lightning_dp.privacy.report") / "page.css").read_text(encoding="utf-8")
    summary = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in summary_of(report))
    body = "\n".join(_section(section, report) for section in sections_of(report))
    title = escape(title_of(report))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p class="headline">{escape(headline_of(report))}</p>
{summary}
</header>
{body}
<footer>{escape(MADE.replace("`", ""))}</footer>
</main>
</body>
</html>
"""


def _section(section: Section, report: PrivacyReport) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    if section.curve and report.curve:
        parts.append(f"<figure>{to_svg(report.curve, delta=report.delta)}</figure>")
    if section.lines:
        lines = "\n".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in section.lines
        )
        parts.append(f"<dl>\n{lines}\n</dl>")
    if section.table:
        head = "".join(f"<th>{escape(name)}</th>" for name in section.table.columns)
        rows = "\n".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in section.table.rows
        )
        parts.append(
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table></div>"
        )
    if section.points:
        points = "\n".join(f"<li>{escape(point)}</li>" for point in section.points)
        parts.append(f"<ul>\n{points}\n</ul>")
    return "\n".join([*parts, "</section>"])
