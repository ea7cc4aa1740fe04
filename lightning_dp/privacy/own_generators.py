"""Generators that a step, a data set or a collation keeps for itself: nobody knows how they were seeded.

They move on from batch to batch and hand out numbers in the order of the batch, so a published seed makes
every unit's draws known (`privacy.randomness`).
"""

import functools
import random
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
_GLOBAL = (torch.default_generator, np.random.mtrand._rand, random._inst)
_DEEPEST = 6
_LONGEST = 1_000
_MOST = 100_000
_LEAVES = (str, bytes, int, float, complex, type, ModuleType, Tensor, np.ndarray)


def find_generators(place: str, root: Any, *, beside: tuple[Any, ...] = ()) -> list[str]:
    """Where random generators are kept that `root` can reach: attributes, containers, closures, partials.

    Args:
        place: the name of `root` in the answer.
        root: a module, a data set, a function.
        beside: what it may refer to and is not looked into.
    """
    seen = {id(one) for one in beside}
    return [f"{path} ({type(one).__name__})" for path, one in _walk(place, root, seen=seen, depth=0)]


def _walk(path: str, value: Any, *, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _KINDS):
        # The operating system's can't be seeded; the global ones are looked after by `privacy.randomness`.
        if not isinstance(value, random.SystemRandom) and not any(value is one for one in _GLOBAL):
            yield path, value
        return
    if value is None or isinstance(value, _LEAVES) or depth > _DEEPEST:
        return
    if id(value) in seen or len(seen) > _MOST:
        return
    seen.add(id(value))
    for name, inner in _parts(value):
        yield from _walk(f"{path}{name}", inner, seen=seen, depth=depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, MethodType):
        yield "", value.__func__
        yield "", value.__self__
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, functools.partial):
        yield from ((f"({name})", one) for name, one in enumerate((value.func, *value.args)))
        yield from ((f"({name})", one) for name, one in value.keywords.items())
    elif isinstance(value, Mapping):
        yield from ((f"[{name!r}]", one) for name, one in list(value.items())[:_LONGEST])
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{number}]", one) for number, one in enumerate(list(value)[:_LONGEST]))
    elif isinstance(value, nn.Module):
        for name, child in value.named_modules():
            yield from (
                (f".{name}.{attribute}" if name else f".{attribute}", one)
                for attribute, one in vars(child).items()
                if not isinstance(one, nn.Module)
                and attribute not in ("_modules", "_parameters", "_buffers", "_trainer", "_fabric")
            )
        yield from _of_class(value)
    else:
        yield from ((f".{name}", one) for name, one in getattr(value, "__dict__", {}).items())
        yield from _of_class(value)


def _of_class(value: Any) -> Iterator[tuple[str, Any]]:
    """What the methods and class attributes of its own classes refer to, not those of a library's."""
    for kind in type(value).__mro__:
        if kind.__module__.split(".")[0] in ("torch", "lightning", "builtins", "abc", "typing"):
            continue
        yield from ((f".{name}", one) for name, one in vars(kind).items() if not name.startswith("__"))
        for name in ("__getitem__", "__getitems__", "__call__"):
            if name in vars(kind):
                yield f".{name}", vars(kind)[name]


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" → {name}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from ((f" → {one!r}", one) for one in function.__defaults__ or ())
    # Of globals the generators alone: through functions it would be the whole program.
    for name in _names(function.__code__):
        one = function.__globals__.get(name)
        if isinstance(one, _KINDS):
            yield f" → {name}", one


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
