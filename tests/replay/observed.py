"""What anybody could see of a run, and where two runs differ in it.

Seen: all files of the run folder but what is named `nonprivate/`, what W&B was sent, the ledger, the
process's exit. Random names (the run's id, hashes, times, paths) are replaced by what they name; keys, and
what they sign or seal, are left out: it is as random as they are and, sealed, always of one length.
"""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from wandb.proto import wandb_internal_pb2

from lightning_dp.privacy.ledger import Ledger
from replay.tape import PRIVATE_PREFIX

_ROW_NUMBERS = {"step", "epoch"}
_WANDB_CLOCK = {"_timestamp", "_runtime"}
_BLOCK = 2**15
_SIGNED = {"public_key", "signature", "key", "sealed"}


def files_of(folder: Path, names: dict[str, str]) -> dict[str, Any]:
    """Contents of a run folder by relative path."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix == ".wandb":
            found["sent to W&B"] = _wandb_history(path)
        elif path.is_file() and "wandb" not in inside.parts:
            found[str(inside)] = _renamed(_read(path), names)
    return found


def ledger_of(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The ledger's entries without what is random in them, and what each random name stands for."""
    names, entries = {}, []
    for entry in Ledger(path).entries() if path.exists() else []:
        names |= {entry.hash: f"hash {entry.seq}", entry.run: "the run", entry.lease: "a lease"}
        detail = {
            name: value for name, value in entry.detail.items() if name not in {"process", "nonce", *_SIGNED}
        }
        entries.append({"kind": entry.kind, "dataset": entry.dataset, "unit": entry.unit, "detail": detail})
    names.pop("", None)
    return _renamed(entries, names), names


def differences(ours: Any, theirs: Any, *, at: str = "") -> Iterator[str]:
    """Where two observations differ, bit by bit, as paths."""
    if type(ours) is not type(theirs):
        yield f"{at}: {_short(ours)} and {_short(theirs)}"
    elif isinstance(ours, dict):
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            where = f"{at}/{name}" if at else str(name)
            if name not in ours or name not in theirs:
                yield f"{where}: only on {'D' if name in ours else 'D′'}"
            else:
                yield from differences(ours[name], theirs[name], at=where)
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            yield f"{at}: {len(ours)} and {len(theirs)} of them"
        for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            yield from differences(one, other, at=f"{at}[{place}]")
    elif isinstance(ours, Tensor):
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if not same or not torch.equal(_bits(ours), _bits(theirs)):
            yield f"{at}: {_short(ours)} and {_short(theirs)}"
    elif ours != theirs and not (ours != ours and theirs != theirs):
        yield f"{at}: {_short(ours)} and {_short(theirs)}"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor


def _short(value: Any) -> str:
    text = (
        f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) and value.numel() > 4 else repr(value)
    )
    return text if len(text) < 60 else f"{text[:57]}…"


def _read(path: Path) -> Any:
    if path.suffix == ".ckpt":
        return _unsigned(torch.load(path, weights_only=False))
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        # A file of private statistics that says so, as a metric does by its name.
        return "there" if "nonprivate" in content else _unsigned(content)
    if path.suffix == ".csv":
        return _public_rows(path)
    if path.suffix in {".yaml", ".txt"}:
        return path.read_text()
    return "there"


def _unsigned(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _unsigned(value) for name, value in content.items() if name not in _SIGNED}
    return [_unsigned(value) for value in content] if isinstance(content, list) else content


def _public_rows(path: Path) -> list[dict[str, str]]:
    """Rows with a value that is not private; a row of private ones alone is as private as they are."""
    with path.open() as file:
        rows = [
            {name: value for name, value in row.items() if value and not name.startswith(PRIVATE_PREFIX)}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if set(row) - _ROW_NUMBERS]


def _wandb_history(path: Path) -> list[dict[str, str]]:
    """Every row of metrics in a W&B file, but for W&B's own clock."""
    rows = []
    for content in _wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({name: text for name, text in items.items() if name not in _WANDB_CLOCK})
    return rows


def _wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format after a header of 7 bytes.

    Blocks of 32 KiB hold fragments: a checksum (4 bytes), a length (2), a type (1: whole, 2: first,
    3: middle, 4: last), the bytes.
    """
    position, record = 7, b""
    while position + 7 <= len(content):
        if _BLOCK - position % _BLOCK < 7:  # too short a rest for another fragment
            position += _BLOCK - position % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in {1, 4}:
            yield record
            record = b""


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str | Path):
        text = str(value)
        for name, stands_for in names.items():
            text = text.replace(name, stands_for)
        return text
    if isinstance(value, dict):
        return {_renamed(name, names): _renamed(item, names) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(item, names) for item in value]
    return value
