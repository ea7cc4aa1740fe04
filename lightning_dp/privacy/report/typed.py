"""JSON to frozen dataclasses and back, refusing in one sentence what has another type than a field's.

A field's metadata has `about`, one line that says what it is; `schema.py` makes JSON Schema of the same
annotations, so reader and schema file can't differ.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def about(text: str) -> dict[str, str]:
    """Metadata of a field: its one line of explanation."""
    return {"about": text}


def read(value: Any, kind: Any, *, where: str) -> Any:
    """A JSON value as the annotated type: numbers, "inf" for ∞, text, lists, objects, dataclasses.

    Args:
        value: as `json.loads` made it.
        kind: the annotation.
        where: the value's path in the file, for the sentence.

    Raises:
        ValueError: it is of another type.
    """
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (inner,) = (one for one in arguments if one is not type(None))
        return read(value, inner, where=where)
    if origin is tuple and isinstance(value, list):
        return tuple(read(one, arguments[0], where=f"{where}[{place}]") for place, one in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: read(one, arguments[1], where=f"{where}.{name}") for name, one in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return read_object(value, kind, where=where)  # type: ignore[arg-type]
    if kind is float and (value == "inf" or _is_number(value)):
        return math.inf if value == "inf" else value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise ValueError(f"{where} is {_short(value)}, which is no {name_of(kind)}")


def read_object(content: Mapping[str, Any], kind: type[T], *, where: str = "") -> T:
    """An object whose fields are those of a dataclass, all of those without a default among them.

    Raises:
        ValueError: one is missing, unknown or of another type.
    """
    hints, prefix = get_type_hints(kind), f"{where}." if where else ""
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in content:
        if name not in fields:
            raise ValueError(f"{prefix}{name} is no field of a privacy report")
    for name, one in fields.items():
        if name not in content and one.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    return kind(
        **{name: read(value, hints[name], where=f"{prefix}{name}") for name, value in content.items()}
    )


def to_json(value: Any) -> Any:
    """What `read` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: to_json(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: to_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def name_of(kind: Any) -> str:
    """A type as sentences call it."""
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return "object"
    return {float: "number", int: "whole number", str: "text", bool: "true or false"}.get(kind, str(kind))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
