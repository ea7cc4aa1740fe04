"""Croissant metadata (MLCommons, version 1.0) of sample sets: files by hash, columns with their types."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_dp.privacy.report import replace_text

NAME = "croissant.json"

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "column": "cr:column",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "includes": "cr:includes",
    "recordSet": "cr:recordSet",
    "source": "cr:source",
}
_FORMATS = {".csv": "text/csv", ".parquet": "application/vnd.apache.parquet", ".npz": "application/zip"}


def file_object(name: str, *, sha256: str, size: int) -> dict[str, Any]:
    """One file.

    Args:
        name: its path, seen from the metadata.
        sha256: of its content.
        size: in bytes.
    """
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": _FORMATS.get(Path(name).suffix, "application/octet-stream"),
        "sha256": sha256,
    }


def image_set(pattern: str) -> dict[str, Any]:
    """Images in folders that are named after their classes; each file's hash is in privacy.json."""
    return {
        "@type": "cr:FileSet",
        "@id": "images",
        "name": "images",
        "encodingFormat": "image/png",
        "includes": pattern,
    }


def columns_of(name: str, types: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records of a table.

    Args:
        name: of its file.
        types: column → `sc:Text`, `sc:DateTime`, `sc:Integer` or `sc:Float`.
    """
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"rows/{column}",
            "name": column,
            "dataType": kind,
            "source": {"fileObject": {"@id": name}, "extract": {"column": column}},
        }
        for column, kind in types.items()
    ]
    return [{"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": fields}]


def write_croissant(
    path: Path,
    *,
    name: str,
    description: str,
    distribution: list[dict[str, Any]],
    records: list[dict[str, Any]] | None = None,
) -> None:
    """The metadata of one sample set.

    Args:
        path: of the JSON file.
        name: of the set.
        description: what it is, ε among it.
        distribution: its files.
        records: its columns, where it has some.
    """
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "distribution": distribution,
        **({"recordSet": records} if records else {}),
    }
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
