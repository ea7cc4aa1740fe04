"""Replacing the forward of single module instances, and taking it back without a trace."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_MISSING = object()


class _Patched:
    """Stands in for `module.forward`; a copy of the module gets the forward that there was before."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any], before: Any) -> None:
        functools.update_wrapper(self, module.forward)
        self._module = module
        self._before = before
        # torch.compile must not trace through: what backward records are side effects.
        self._forward = torch.compiler.disable(forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not _MISSING:
            return copy.deepcopy(self._before, memo)
        copied = memo.get(id(self._module), self._module)
        return types.MethodType(type(copied).forward, copied)

    def __reduce__(self) -> Any:
        return types.MethodType, (type(self._module).forward, self._module)


class Patches:
    """The forwards replaced so far."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, Any]] = []

    def put(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Call `forward` wherever module.forward was called; hooks of the module still run."""
        before = module.__dict__.get("forward", _MISSING)
        self._before.append((module, before))
        module.__dict__["forward"] = _Patched(module, forward, before)

    def undo(self) -> None:
        """Leave each module as it was found. Safe to call twice."""
        while self._before:
            module, before = self._before.pop()
            if before is _MISSING:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before
