"""Folders that are handed on: their report lists every file by its hash, and is signed."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_dp.privacy.report import REPORT_NAME, read_privacy_report, write_privacy_report


def seal_folder(folder: Path, *, sign: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Add the hashes of a folder's files to its report; the last thing that is written.

    Args:
        folder: of samples or weights, with their report.
        sign: signs a report.
    """
    report = read_privacy_report(folder)
    write_privacy_report(folder, sign({**report, "files": _files(folder)}))


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
    there = _files(folder)
    return [
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


def _files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(paths)
        if path.relative_to(folder) != Path(REPORT_NAME)
    }
