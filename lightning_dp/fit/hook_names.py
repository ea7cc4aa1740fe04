"""Hooks that are misspelt, in the wrong place or of the wrong kind, so that nobody would ask them.

What counts as a hook is computed from `protocols.HOOKS`: those with a `near`, whose absence changes what a
private fit guarantees or does. Nothing here reads a row.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from numbers import Integral
from types import FunctionType, MethodType
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_dp.protocols import HOOKS, Hook, Place, members, provides

_GUARDED = {name: hook for hook in HOOKS if hook.near is not None for name in members(hook.protocol)}
_ELSEWHERE = 0.9  # similarity from which a name is a hook of another part
_OURS = ("torch", "torchvision", "lightning", "lightning_fabric", "lightning_dp", "builtins", "abc", "typing")
_LIGHTNINGS = frozenset({*dir(LightningModule), *dir(LightningDataModule)})
_PARTS = {"data": "the data module or the train dataset", "module": "the LightningModule"}


def check_hooks(
    datamodule: object | None, data: object | None, module: object, *, said: Mapping[str, Any]
) -> None:
    """Raise ValueError where something looks like a hook that nobody will ask, or that can't be asked.

    Args:
        datamodule: of the fit, or None.
        data: the train dataset; what it keeps inside is looked at too. None where it is not there yet.
        module: of the fit.
        said: hook → what the callback was given in its place, or None.
    """
    silent = {hook for hook, value in said.items() if value is not None}
    asked: list[tuple[object, Place]] = [(one, "data") for one in (datamodule, data) if one is not None]
    asked += [(one, "data") for one in inner_datasets(data)]
    for place, kind in [*asked, (module, "module")]:
        names = set(_public_names(place))
        _check_place(place, names, kind=kind, silent=silent)
        _check_names(place, names, kind=kind, silent=silent)
        for name, hook in _GUARDED.items():
            if hook.of == kind and name in names:
                _check_kind(place, name, hook=hook)


def _check_place(place: object, names: set[str], *, kind: Place, silent: set[str]) -> None:
    for name, hook in _GUARDED.items():
        if name in names and hook.of != kind and name not in silent:
            raise ValueError(
                f"{type(place).__name__}.{name} is in the wrong place, where nobody asks it: move it to "
                f"{_PARTS[hook.of]}"
            )


def _check_names(place: object, names: set[str], *, kind: Place, silent: set[str]) -> None:
    there = silent | {
        name for name, hook in _GUARDED.items() if hook.of == kind and provides(place, hook.protocol)
    }
    for name in sorted(names - set(_GUARDED) - _LIGHTNINGS):
        likeness = {
            wanted: difflib.SequenceMatcher(None, name.lower(), wanted).ratio()
            - (hook.near if hook.of == kind else max(hook.near, _ELSEWHERE))
            for wanted, hook in _GUARDED.items()
            if hook.near is not None and wanted not in there
        }
        wanted = max(likeness, key=lambda one: likeness[one], default="")
        if wanted and likeness[wanted] >= 0:
            hook = _GUARDED[wanted]
            of = "" if hook.of == kind else f" of {_PARTS[hook.of]}"
            raise ValueError(
                f"{type(place).__name__}.{name} is nothing that anybody asks for: if it is meant as "
                f"the hook {wanted}{of}, name it so; if not, give it a name of its own"
            )


def _check_kind(place: object, name: str, *, hook: Hook) -> None:
    """Refuse a method where a value is read, a value where a method is called, and values of another type."""
    where, wanted = f"{type(place).__name__}.{name}", members(hook.protocol)[name]
    if not isinstance(wanted, FunctionType):  # a type: the member is read, never called
        held = inspect.getattr_static(place, name, None)
        if isinstance(held, FunctionType | MethodType | classmethod | staticmethod):
            raise ValueError(f"{where} is a method, and is read without a call: write @property above it")
    try:
        value = getattr(place, name)
    except Exception:
        return  # a property that fails is heard where the hook is asked
    if isinstance(wanted, FunctionType):
        if not callable(value):
            signature = str(inspect.signature(wanted)).replace("lightning_dp.privacy.units.", "")
            raise ValueError(f"{where} is {short(value)} and no method; write 'def {name}{signature}'")
    elif wanted is bool and not isinstance(value, bool):
        raise ValueError(f"{where} is {short(value)}; it must be True or False")
    elif wanted is int and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
        raise ValueError(f"{where} is {short(value)}; it must be a whole number of at least 1")


def inner_datasets(data: object) -> Iterator[object]:
    """Everything with items that a dataset keeps in its attributes, at any depth; not itself."""
    seen, waiting = {id(data)}, [data]
    while waiting:
        held = getattr(waiting.pop(), "__dict__", {})
        for value in held.values():
            for one in value if isinstance(value, list | tuple) and len(value) < 1000 else (value,):
                if id(one) not in seen and hasattr(type(one), "__getitem__") and hasattr(one, "__dict__"):
                    seen.add(id(one))
                    waiting.append(one)
                    yield one


def _public_names(place: object) -> Iterator[str]:
    """Names that the classes of the user and the instance define, not those of torch or Lightning."""
    for kind in type(place).__mro__:
        if kind.__module__.partition(".")[0] not in _OURS:
            yield from (name for name in vars(kind) if not name.startswith("_"))
    held = getattr(place, "__dict__", {})
    yield from (name for name in held if not name.startswith("_"))
    for inside in ("_parameters", "_buffers", "_modules"):
        yield from held.get(inside, ())


def short(value: object) -> str:
    """As a message shows a value: its text, or its type where that is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
