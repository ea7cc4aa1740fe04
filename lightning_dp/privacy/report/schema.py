"""`privacy_report.schema.json`: JSON Schema of reports, made of the dataclasses that read them.

`python -m lightning_dp.privacy.report.schema` prints it; a test compares that with the file.
"""

import dataclasses
import json
import types
from importlib.resources import files
from typing import Any, get_args, get_origin, get_type_hints

from lightning_dp.privacy.report.document import SCHEMA, PrivacyReport

NAME = "privacy_report.schema.json"


def schema() -> dict[str, Any]:
    """The schema as it is shipped."""
    path = files("lightning_dp.privacy.report") / NAME
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def make_schema() -> dict[str, Any]:
    """The schema of the dataclasses as they are: JSON Schema, draft 2020-12."""
    defined: dict[str, Any] = {}
    whole = _object(PrivacyReport, defined, left_out=("other", "order"))
    whole["properties"]["schema"] = {"const": SCHEMA, **_about(whole["properties"]["schema"])}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Privacy report of lightning-dp",
        "description": "Reports without the field schema are of older versions. Unknown fields are allowed.",
        **whole,
        "anyOf": [{"required": ["epsilon_spent"]}, {"required": ["epsilon"]}],
        "additionalProperties": True,
        "$defs": {"number": {"anyOf": [{"type": "number"}, {"const": "inf"}]}, **defined},
    }


def _object(kind: Any, defined: dict[str, Any], *, left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    hints = get_type_hints(kind)
    fields = [one for one in dataclasses.fields(kind) if one.name not in left_out]
    return {
        "type": "object",
        "properties": {
            one.name: {"description": one.metadata["about"], **_of(hints[one.name], defined)}
            for one in fields
        },
        "required": [one.name for one in fields if one.default is dataclasses.MISSING],
        "additionalProperties": False,
    }


def _of(kind: Any, defined: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if origin is types.UnionType:
        (inner,) = (one for one in arguments if one is not type(None))
        return {"anyOf": [_of(inner, defined), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0], defined)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], defined)}
    if dataclasses.is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]
        defined.setdefault(name, _object(kind, defined))
        return {"$ref": f"#/$defs/{name}"}
    if kind is float:
        return {"$ref": "#/$defs/number"}
    return {"type": {int: "integer", str: "string", bool: "boolean"}[kind]}


def _about(content: dict[str, Any]) -> dict[str, Any]:
    return {"description": content["description"]}


if __name__ == "__main__":
    print(json.dumps(make_schema(), indent=2, ensure_ascii=False))
