"""The page and the Markdown file beside a report: written of it, taken away before it changes, compared."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_dp.privacy.report.document import PrivacyReport
from lightning_dp.privacy.report.files import REPORT_NAME, replace_text
from lightning_dp.privacy.report.markdown import to_markdown
from lightning_dp.privacy.report.page import to_page

_STEM = "privacy_report"
_ENDINGS = {".html": to_page, ".md": to_markdown}


def readable_paths(report: Path) -> list[Path]:
    """The files that show a report to people.

    >>> [path.name for path in readable_paths(Path("runs/eps3/privacy.json"))]
    ['privacy_report.html', 'privacy_report.md']
    >>> [path.name for path in readable_paths(Path("days.csv.privacy.json"))]
    ['days.csv.privacy_report.html', 'days.csv.privacy_report.md']
    """
    before = report.name.removesuffix(REPORT_NAME)
    return [report.with_name(f"{before}{_STEM}{ending}") for ending in _ENDINGS]


def report_shown_by(path: Path) -> Path:
    """The report that a page or a Markdown file was made of; any other path as it is."""
    for ending in _ENDINGS:
        if path.name.endswith(f"{_STEM}{ending}"):
            return path.with_name(path.name.removesuffix(f"{_STEM}{ending}") + REPORT_NAME)
    return path


def write_readable(report: Path, content: Mapping[str, Any]) -> None:
    """Show a report, whose content was just written, to people.

    Raises:
        ValueError: it is no report.
        OSError: they can't be written; then none of them is there.
    """
    try:
        document = PrivacyReport.of(content)
    except ValueError as error:
        raise ValueError(f"{report} can't be shown to people: {error}.") from error
    try:
        for path, render in zip(readable_paths(report), _ENDINGS.values(), strict=True):
            replace_text(path, render(document))
    except OSError:
        with contextlib.suppress(OSError):
            remove_readable(report)
        raise


def remove_readable(report: Path) -> None:
    """Take them away before the report says more than they do."""
    for path in readable_paths(report):
        path.unlink(missing_ok=True)


def check_readable(report: Path, document: PrivacyReport) -> list[str]:
    """A sentence for each that shows something else than the report says; [] also where there is none."""
    findings = []
    for path, render in zip(readable_paths(report), _ENDINGS.values(), strict=True):
        if not path.is_file():
            continue
        if path.read_bytes() != render(document).encode():
            findings.append(
                f"{path} does not show what {report.name} says: one of the two was changed after it was "
                "written, or a version of lightning-dp wrote it that lays it out otherwise."
            )
    return findings
