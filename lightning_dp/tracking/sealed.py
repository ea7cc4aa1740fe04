"""Folders that are handed on: their report lists every file by its hash, and is signed."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_dp.privacy.report import REPORT_NAME, read_privacy_report, write_privacy_report
from lightning_dp.privacy.report.readable import readable_paths, write_readable
from lightning_dp.tracking.cards import card_beside


def seal_folder(
    folder: Path, *, sign: Callable[[Mapping[str, Any]], dict[str, Any]], kind: str | None = None
) -> None:
    """Add the hashes of a folder's files to its report, and show it to people; the last that is written.

    Pages that are made of the report, its own card among them, are compared with it instead.

    Args:
        folder: of samples or weights, with their report.
        sign: signs a report.
        kind: what the folder holds, as reports say it; None leaves what the report says.
    """
    report = read_privacy_report(folder)
    made = {} if kind is None else {"kind": kind}
    content = sign({**report, **made, "files": _files(folder)})
    write_privacy_report(folder, content)
    write_readable(folder / REPORT_NAME, content)


def check_files(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """A sentence for each file that is not the one that a report speaks of; [] where it speaks of none."""
    if "sha256" in report:  # of a table, which lies beside its report
        path = folder / Path(str(report.get("file", ""))).name
        if not path.is_file():
            return [f"{path} is missing, of which this report speaks"]
        same = sha256_of(path) == report["sha256"]
        return [] if same else [f"{path} is not the file that this report speaks of: its SHA-256 differs"]
    listed = report.get("files")
    if not isinstance(listed, Mapping):
        return []
    there = _files(folder, listed=listed)
    links = sorted(path for path in folder.rglob("*") if path.is_symlink())
    return [
        *(f"{path} is a link, and what this report speaks of are files" for path in links),
        *(
            f"{folder / name} is missing, of which this report speaks"
            for name in sorted(set(listed) - set(there))
        ),
        *(
            f"{folder / name} is none of the files of which this report speaks"
            for name in sorted(set(there) - set(listed))
        ),
        *(
            f"{folder / name} is not the file that this report speaks of: its SHA-256 differs"
            for name in sorted(set(there) & set(listed))
            if there[name] != listed[name]
        ),
    ]


def sha256_of(path: Path) -> str:
    """64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path, *, listed: Mapping[str, Any] | None = None) -> dict[str, str]:
    report = folder / REPORT_NAME
    made_of_it = {report, *readable_paths(report), card_beside(report)}
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    return {
        name: sha256_of(path)
        for name, path in names.items()
        if path not in made_of_it or name in (listed or {})
    }
