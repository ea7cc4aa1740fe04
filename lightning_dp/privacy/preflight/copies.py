"""Copies of a module as `copy.deepcopy` makes them, in about half of its time.

A step is tried on as many copies as there are trials, and a network has a dozen small tables a layer. Modules
and plain tables are walked here, by the same protocol and with the same memo; everything else is left to
`copy.deepcopy`. Nothing but weights, and what a caller says, is shared. Python's collector of garbage waits
meanwhile: it would walk all that is alive for each ten thousand tables, and find nothing.
"""

import copy
import copyreg
import gc
import types
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
_Memo = dict[int, Any]

# Types whose values can't change, and which `copy.deepcopy` hands on; functions are looked at afterwards.
_ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, type, types.FunctionType, types.BuiltinFunctionType)
)
_TABLES = (dict, OrderedDict)


def copied(module: M, *, keep: Sequence[Any] = (), with_weights: bool = False) -> M:
    """A copy of `module` that shares what is in `keep`, and its weights unless `with_weights`.

    A partial that a configuration made, such as an optimizer to be, is shared as well: it can refer to the
    whole configuration, and so to the trainer and its data.
    """
    with _no_collection():
        return _copied(module, keep=keep, with_weights=with_weights)


def _copied(module: M, *, keep: Sequence[Any], with_weights: bool) -> M:
    memo: _Memo = {id(one): one for one in keep}
    for child in module.modules():
        for value in vars(child).values():
            if isinstance(value, partial) and not _refers_to_a_module(value):
                memo[id(value)] = value
        if not with_weights:
            memo.update((id(p), p) for p in child._parameters.values() if p is not None)
    again = _again(module, memo)
    for child in again.modules():
        for name, value in list(vars(child).items()):
            if type(value) is types.FunctionType and value.__closure__:
                child.__dict__[name] = _rebound(value, memo)
    result: M = again
    return result


@contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _again(value: Any, memo: _Memo) -> Any:
    """What `copy.deepcopy` makes of a value."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _TABLES and all(type(key) in _ATOMS for key in value):
        return _table(value, memo)
    if kind is list:
        again: list[Any] = _remembered(value, [], memo)
        again.extend([_again(one, memo) for one in value])
        return again
    if kind is tuple and all(type(one) in _ATOMS for one in value):
        return value
    if kind is set and not value:
        return _remembered(value, set(), memo)
    if isinstance(value, nn.Module) and getattr(value, "__deepcopy__", None) is None:
        return _module(value, memo)
    return copy.deepcopy(value, memo)


def _module(module: nn.Module, memo: _Memo) -> Any:
    """By the protocol of pickle, as `copy.deepcopy` asks for it; what it does otherwise is left to that."""
    kind = type(module)
    parts = None if kind in copyreg.dispatch_table else module.__reduce_ex__(4)
    if (
        not isinstance(parts, tuple)
        or parts[:2] != (copyreg.__newobj__, (kind,))  # type: ignore[attr-defined]
        or type(parts[2]) is not dict
        or any(parts[3:])
    ):
        return copy.deepcopy(module, memo)
    again = _remembered(module, kind.__new__(kind), memo)
    again.__setstate__(_again(parts[2], memo))
    return again


def _table(table: dict[Any, Any], memo: _Memo) -> dict[Any, Any]:
    again = _remembered(table, type(table)(table), memo)  # what can't change is in it
    for key, value in table.items():
        if type(value) not in _ATOMS:
            again[key] = _again(value, memo)
    result: dict[Any, Any] = again
    return result


def _remembered(value: Any, again: Any, memo: _Memo) -> Any:
    """The copy, known before what is in it; the original has to live while its place in memory is a key."""
    memo[id(value)] = again
    memo.setdefault(id(memo), []).append(value)
    return again


def _rebound(function: types.FunctionType, memo: _Memo) -> types.FunctionType:
    """A function that a module keeps, such as lambda x: self.net(x), with copies of modules in its closure.

    Python copies functions by reference, so a copied module would call the original's layers.
    """

    def cell(old: types.CellType) -> types.CellType:
        try:
            held = old.cell_contents
        except ValueError:  # not filled yet
            return old
        return types.CellType(memo[id(held)]) if isinstance(held, nn.Module) and id(held) in memo else old

    again = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(map(cell, function.__closure__ or ())),
    )
    again.__kwdefaults__ = function.__kwdefaults__
    again.__dict__.update(function.__dict__)
    return again


def _refers_to_a_module(made: partial[Any]) -> bool:
    given = (getattr(made.func, "__self__", None), *made.args, *made.keywords.values())
    return any(isinstance(one, nn.Module | Tensor) for one in given)
