"""A W&B agent writes a trial's values as Python prints them; the parser reads YAML."""

import ast
import json
import math
from typing import Any

_WORDS = {"None": "null", "inf": ".inf", "-inf": "-.inf", "nan": ".nan"}


def yaml_text(argument: str) -> str:
    """`--name=value` with a value as Python prints it → as YAML reads it; anything else stays as it is.

    >>> yaml_text("--privacy=None")
    '--privacy=null'
    >>> yaml_text("--model.init_args.bounds=[0.0, inf]")
    '--model.init_args.bounds=[0.0, .inf]'
    """
    name, equals, value = argument.partition("=")
    if not (equals and name.startswith("--")):
        return argument
    if value in _WORDS:
        return f"{name}={_WORDS[value]}"
    if value[:1] not in ("[", "{"):
        return argument
    try:
        return f"{name}={_flow(_literal(ast.parse(value, mode='eval').body))}"
    except (SyntaxError, ValueError):  # no Python literal: YAML's own flow style, or nonsense it will name
        return argument


def _literal(node: ast.expr) -> Any:
    """ast.literal_eval, with inf and nan, which Python prints without quotes."""
    match node:
        case ast.Name(id="inf" | "nan" as name):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_literal(operand)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True) if key}
    return ast.literal_eval(node)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return _WORDS[str(value)]
    return json.dumps(value)
