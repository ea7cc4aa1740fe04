"""What `wandb sync` would send of an offline run: its file, read record by record."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_Record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]
_HEADER_BYTES = 7  # of the file, and of each piece: checksum, length, kind
_BLOCK_BYTES = 32 * 1024  # of LevelDB's log format, in which W&B writes
_WHOLE, _FIRST, _LAST = 1, 2, 4
_SHOWN = 60


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file in order; a piece that was cut off ends them."""
    content = path.read_bytes()
    place, parts = _HEADER_BYTES, bytearray()
    while place + _HEADER_BYTES <= len(content):
        left = _BLOCK_BYTES - place % _BLOCK_BYTES
        if left < _HEADER_BYTES:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        place += _HEADER_BYTES
        if kind in (_WHOLE, _FIRST):
            parts = bytearray()
        parts += content[place : place + length]
        place += length
        if kind in (_WHOLE, _LAST):
            record = _Record()
            record.ParseFromString(bytes(parts))
            yield record


def _named(run: Any) -> dict[str, str]:
    """By what a run would be known."""
    fields = ("entity", "project", "run_group", "job_type", "display_name", "host", "run_id")
    return {field: value for field in fields if (value := getattr(run, field))}


def described(path: Path) -> list[str]:
    """Lines for people: every name that would be sent, with the last value under it."""
    run: dict[str, str] = {}
    config: dict[str, str] = {}
    history: dict[str, str] = {}
    summary: dict[str, str] = {}
    files: dict[str, str] = {}
    other: dict[str, str] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= _named(record.run)
            if record.run.tags:
                run["tags"] = ", ".join(record.run.tags)
            if record.run.git.remote_url:
                run["git"] = record.run.git.remote_url
            config |= _items(record.run.config.update)
        elif kind == "config":
            config |= _items(record.config.update)
        elif kind in ("history", "partial_history"):
            part = record.history if kind == "history" else record.partial_history
            history |= _items(part.item)
        elif kind == "summary":
            summary |= _items(record.summary.update)
        elif kind == "files":
            files |= {item.path: "a file" for item in record.files.files}
        elif kind == "output_raw":
            other["console"] = record.output_raw.line
        elif kind == "environment":
            other["environment"] = str(record.environment)
        elif kind in ("artifact", "use_artifact"):
            part = record.artifact if kind == "artifact" else record.use_artifact
            files[part.name] = "an artifact"
    lines = []
    for title, found in (
        ("run", run),
        ("config", config),
        ("history", history),
        ("summary", summary),
        ("files", files),
        ("other", other),
    ):
        lines += [
            f"  {title:<8} {name} = {' '.join(value.split())[:_SHOWN]}" for name, value in found.items()
        ]
    return lines


def _items(items: Any) -> dict[str, str]:
    return {
        name: text
        for item in items
        for name, text in _flat(item.key or "/".join(item.nested_key), _value(item.value_json))
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    else:
        yield name, str(value)
