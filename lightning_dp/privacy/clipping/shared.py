"""Tensors computed from parameters alone, followed until they meet the rows of the batch.

While a module's forward runs, its trainable parameters are replaced by `Shared` views. An operator on
Shared tensors alone gives a Shared tensor (a slice of a position table, a normalised weight). An
operator that brings one together with rows is where per-row gradients exist, and is recorded:

* by a layer's own rule (`F.linear`, `F.conv2d`, norms, `F.embedding`, attention),
* where operands are broadcast (x + position, cat([class token, x])) by making the broadcast explicit,
* else by running this one operator row by row under torch.func.

So bare parameters, hand-written layers, reparametrised weights and position embeddings need no rule.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.clipping.layer_ops import tap
from lightning_dp.privacy.clipping.per_row import per_row_gradients
from lightning_dp.privacy.clipping.tape import DerivedSink, ParameterSink, Sink, Tape
from lightning_dp.privacy.clipping.trees import Autocast, has_rows, map_tensors, tensors
from lightning_dp.privacy.clipping.uses import KeptUse

Make = Callable[[dict[str, Tensor]], Tensor]
Rule = Callable[..., Any]

RULES: dict[Callable[..., Any], Rule] = {}
"""Operators with a rule: rule(tape, *args, **kwargs), NotImplemented where it does not apply."""

_BROADCASTING = frozenset(
    f"{prefix}{name}{suffix}"
    for name in (
        "add",
        "radd",
        "iadd",
        "sub",
        "rsub",
        "isub",
        "mul",
        "rmul",
        "imul",
        "truediv",
        "rtruediv",
        "div",
    )
    for prefix, suffix in (("", ""), ("", "_"), ("__", "__"))
) | {"where", "lerp", "addcmul", "maximum", "minimum", "multiply", "subtract", "masked_fill"}
_JOINING = frozenset({"cat", "concat", "concatenate"})
_REPEATING = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})


class Shared(Tensor):
    """A value that is the same for every row, and how it came from parameters."""

    tape: Tape
    roots: dict[str, Tensor]
    make: Make

    @staticmethod
    def of(value: Tensor, *, tape: Tape, roots: dict[str, Tensor], make: Make) -> "Shared":
        """`value` = make(roots), detached."""
        shared = value.detach().as_subclass(Shared)
        shared.tape, shared.roots, shared.make = tape, roots, make
        return shared

    @staticmethod
    def parameter(parameter: Tensor, *, tape: Tape, name: str) -> "Shared":
        """A trainable parameter itself."""
        value = parameter.detach()
        return Shared.of(value, tape=tape, roots={name: value}, make=lambda roots: roots[name])

    def plain(self) -> Tensor:
        """The value without its history."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    def sink(self) -> Sink:
        """Where uses of this value go."""
        with torch._C.DisableTorchFunctionSubclass():
            if len(self.roots) == 1:
                ((name, value),) = self.roots.items()
                if value.is_set_to(self):
                    return ParameterSink(self.tape, name)
            return DerivedSink(self.tape, self.roots, self.make)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            tape = next(t for t in tensors((args, kwargs)) if isinstance(t, Shared)).tape
            if not tape.listening:
                return func(*_plain(args), **_plain(kwargs))
            rule = RULES.get(func)
            if rule is not None:
                result = rule(tape, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            others = [t for t in tensors((args, kwargs)) if not isinstance(t, Shared)]
            if any(has_rows(t, tape.sums.rows) for t in others):
                return _meet(tape, func, args, kwargs)
            return stay(tape, func, args, kwargs)


def _plain(tree: Any) -> Any:
    return map_tensors(lambda t: t.plain() if isinstance(t, Shared) else t, tree)


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _refuse(func: Any, roots: dict[str, Tensor], why: str) -> RuntimeError:
    return RuntimeError(
        f"{_name(func)} uses {', '.join(roots)} in a way that can't be attributed to rows: {why}. Keep "
        "rows in the first dimension, (B, T, D) instead of (B·T, D), or freeze it (requires_grad=False)."
    )


def _roots(tree: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for tensor in tensors(tree):
        if isinstance(tensor, Shared):
            found.update(tensor.roots)
    return found


def _filled(tree: Any, roots: dict[str, Tensor]) -> Any:
    """`tree` with every Shared tensor computed anew from `roots`."""
    return map_tensors(lambda t: t.make(roots) if isinstance(t, Shared) else t, tree)


def stay(tape: Tape, func: Any, args: Any, kwargs: Any, *, table: bool = False) -> Any:
    """No rows in sight: the result is Shared as well. With `table`, what it meets is known to be no data."""
    roots = _roots((args, kwargs))
    others = [t for t in tensors((args, kwargs)) if not isinstance(t, Shared)]
    rows = tape.sums.rows
    suspicious = func in RULES and not table
    if any(t.requires_grad or (suspicious and _looks_like_data(t, rows)) for t in others):
        shapes = [tuple(t.shape) for t in others]
        raise _refuse(func, roots, f"it meets {shapes}, of which none has {rows} rows first")
    if _name(func) in _REPEATING:
        repeated = _repeat(tape, func, args, kwargs)
        if repeated is not None:
            return repeated
    result = func(*_plain(args), **_plain(kwargs))

    def wrap(value: Tensor, index: int | None) -> Tensor:
        def make(given: dict[str, Tensor]) -> Tensor:
            again = func(*_filled(args, given), **_filled(kwargs, given))
            return again if index is None else again[index]

        if not value.is_floating_point():
            return value
        return Shared.of(value, tape=tape, roots=roots, make=make)

    if isinstance(result, Tensor):
        return wrap(result, None)
    if isinstance(result, list | tuple) and all(isinstance(r, Tensor) for r in result):
        return type(result)(wrap(value, index) for index, value in enumerate(result))
    return result


def _looks_like_data(tensor: Tensor, rows: int) -> bool:
    """A layer's input that isn't a table: rows folded with something else, or not where they belong."""
    if tensor.ndim == 0 or tensor.shape[0] == 1 or rows == 1:
        return False
    return tensor.is_floating_point() or tensor.shape[0] % rows == 0


def _repeat(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """expand and its like along the rows: where rows come into being."""
    value = args[0]
    rows = tape.sums.rows
    if not isinstance(value, Shared) or rows == 1:
        return None
    result = func(*_plain(args), **_plain(kwargs))
    grew = result.ndim > value.ndim or (value.ndim > 0 and value.shape[0] == 1)
    if not (has_rows(result, rows) and grew):
        return None
    extra = result.ndim - value.ndim
    aligned = value.plain().reshape(*(1,) * extra, *value.shape)
    inner = (1, *result.shape[1:])
    if _name(func) == "repeat":
        times = [size // old for size, old in zip(inner, aligned.shape, strict=True)]
        return _rowwise(tape, value, lambda v: v.reshape(aligned.shape).repeat(times))
    return _rowwise(tape, value, lambda v: v.reshape(aligned.shape).expand(inner))


def _rowwise(tape: Tape, value: Shared, change: Callable[[Tensor], Tensor]) -> Tensor:
    """change(value) is (1, …); give each row its own copy, (R, …), and keep the copies' gradients."""
    rows, source, roots = tape.sums.rows, value.make, value.roots
    one = change(value.plain())
    direct = one.numel() == value.numel()
    sink = value.sink() if direct else DerivedSink(tape, roots, lambda given: change(source(given)))
    shape = value.shape if direct else one.shape
    sink.announce()

    def record(grad: Tensor) -> None:
        with exact_products():
            units = grad.reshape(tape.sums.units, tape.sums.rows_per_unit, *shape)
            sink.add(KeptUse(units.sum(dim=1, dtype=torch.float32)))

    return tap(tape, one.expand(rows, *one.shape[1:]), record)


def _aligned(tape: Tape, value: Shared) -> Tensor:
    """value is (R, …) and each row meets its own entry: labels that look like positions."""
    sums, sink = tape.sums, DerivedSink(tape, value.roots, value.make)
    sink.announce()

    def record(grad: Tensor) -> None:
        units = torch.zeros(sums.units, *grad.shape, device=grad.device)  # (U, R, …)
        rows = torch.arange(sums.rows, device=grad.device)
        units[rows // sums.rows_per_unit, rows] = grad.float()
        sink.add(KeptUse(units))

    return tap(tape, value.plain(), record)


def _meet(tape: Tape, func: Any, args: Any, kwargs: Any) -> Any:
    """Shared values and rows in one operator."""
    rows, name = tape.sums.rows, _name(func)
    plain_rank = max(
        t.ndim for t in tensors((args, kwargs)) if not isinstance(t, Shared) and has_rows(t, rows)
    )
    if name in _BROADCASTING or name in _JOINING:
        whole = [t for t in tensors((args, kwargs)) if isinstance(t, Shared)]
        rank = max([plain_rank, *(t.ndim for t in whole)])
        alone = all(t.ndim < rank or t.shape[0] in (1, rows) for t in whole)
        along_rows = name in _JOINING and (kwargs.get("dim", args[1] if len(args) > 1 else 0) in (0, -rank))
        if plain_rank == rank and alone and not along_rows:

            def spread(tensor: Tensor) -> Tensor:
                if not isinstance(tensor, Shared):
                    return tensor
                if tensor.ndim == rank and tensor.shape[0] == rows > 1:
                    return _aligned(tape, tensor)
                shape = (1,) * (rank - tensor.ndim) + tuple(tensor.shape)
                return _rowwise(tape, tensor, lambda v: v.reshape(shape))

            return func(*map_tensors(spread, args), **map_tensors(spread, kwargs))
    return _by_rows(tape, func, args, kwargs)


class _Hole:
    """Stands for a Shared tensor among recorded arguments."""

    def __init__(self, value: Shared) -> None:
        self.make = value.make


def _by_rows(tape: Tape, func: Any, args: Any, kwargs: Any) -> Any:
    """Any other operator: record it, and run it again for each row under torch.func."""
    rows, roots = tape.sums.rows, _roots((args, kwargs))
    result = func(*_plain(args), **_plain(kwargs))
    if not isinstance(result, Tensor) or not has_rows(result, rows):
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise _refuse(func, roots, f"its result is {shape}, not one tensor with {rows} rows first")
    autocast = Autocast(result.device.type)

    def hole(tensor: Tensor) -> Any:
        return _Hole(tensor) if isinstance(tensor, Shared) else tensor.detach()

    kept_args, kept_kwargs = map_tensors(hole, args), map_tensors(hole, kwargs)

    def again(given: dict[str, Tensor], *row_args: Any, **row_kwargs: Any) -> Any:
        with autocast.again():
            return func(*_unhole(row_args, given), **_unhole(row_kwargs, given))

    sinks = {name: ParameterSink(tape, name) for name in roots}
    for sink in sinks.values():
        sink.announce()

    def record(grad: Tensor) -> None:
        found = per_row_gradients(again, roots, kept_args, kept_kwargs, grads={0: grad}, rows=rows)
        for name, sink in sinks.items():
            units = found[name].reshape(tape.sums.units, tape.sums.rows_per_unit, *found[name].shape[1:])
            sink.add(KeptUse(units.sum(dim=1)))

    return tap(tape, result, record)


def _unhole(tree: Any, given: dict[str, Tensor]) -> Any:
    if isinstance(tree, _Hole):
        return tree.make(given)
    if isinstance(tree, dict):
        return {key: _unhole(value, given) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_unhole(value, given) for value in tree)
    return tree
