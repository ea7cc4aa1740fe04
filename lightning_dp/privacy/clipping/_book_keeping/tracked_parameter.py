"""Tensors computed from parameters alone, followed until they meet the units of the batch.

While a module's forward runs, its trainable parameters are replaced by `TrackedParameter` views. An operator
on tracked tensors alone, or with what is the same for all units, gives a tracked tensor (a slice of a
position table, a normalised weight). An operator that brings one together with units is where per-unit
gradients exist, and is recorded:

* by a layer's own rule (`F.linear`, `F.conv2d`, norms, `F.embedding`, attention),
* where operands are broadcast (x + position, cat([class token, x])) by making the broadcast explicit,
* else by running this one operator unit by unit under torch.func.

So bare parameters, hand-written layers, reparametrised weights and position embeddings need no rule. Which
operands have units, and where, is never seen here: it is known from a step that was followed (`sites.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_dp.privacy.clipping._book_keeping.backward_record import (
    BackwardRecord,
    DerivedCollector,
    GradientCollector,
    ParameterCollector,
)
from lightning_dp.privacy.clipping._book_keeping.layer_ops import tap
from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import KeptGradient
from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.clipping.per_unit import Look, per_unit_gradients
from lightning_dp.privacy.clipping.sites import Answer, Site
from lightning_dp.privacy.clipping.trees import Autocast, map_tensors, tensors
from lightning_dp.privacy.rows import UnitDim, UnitsMixed, is_total, own_part, units_of, user_line

Make = Callable[[dict[str, Tensor]], Tensor]
Rule = Callable[..., Any]

RULES: dict[Callable[..., Any], Rule] = {}
"""Operators with a rule: rule(record, look, *args, **kwargs), NotImplemented where it does not apply."""
COMPOSITES: dict[Callable[..., Any], Rule] = {}
"""Functions that are made of others: composite(record, *args, **kwargs), NotImplemented where it is none."""

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
) | {"where", "lerp", "addcmul", "maximum", "minimum", "multiply", "subtract"}
_JOINING = frozenset({"cat", "concat", "concatenate"})
_REPEATING = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})
_SAME_SHAPE = frozenset({"to", "float", "half", "bfloat16", "type", "contiguous", "clone"})


class TrackedParameter(Tensor):
    """A value that is the same for every unit, and how it came from parameters.

    Attributes:
        unrepeated: where this is another tracked value repeated along dimensions of size 1, that value.
    """

    record: BackwardRecord
    roots: dict[str, Tensor]
    make: Make
    unrepeated: "TrackedParameter | None"

    @staticmethod
    def of(
        value: Tensor, *, record: BackwardRecord, roots: dict[str, Tensor], make: Make
    ) -> "TrackedParameter":
        """`value` = make(roots), detached."""
        shared = value.detach().as_subclass(TrackedParameter)
        shared.record, shared.roots, shared.make, shared.unrepeated = record, roots, make, None
        return shared

    @staticmethod
    def parameter(parameter: Tensor, *, record: BackwardRecord, name: str) -> "TrackedParameter":
        """A trainable parameter itself."""
        value = parameter.detach()
        return TrackedParameter.of(value, record=record, roots={name: value}, make=lambda roots: roots[name])

    def plain(self) -> Tensor:
        """The value without its history."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    def collector(self) -> GradientCollector:
        """Where uses of this value go."""
        with torch._C.DisableTorchFunctionSubclass():
            if len(self.roots) == 1:
                ((name, value),) = self.roots.items()
                if value.is_set_to(self):
                    return ParameterCollector(self.record, name)
            return DerivedCollector(self.record, self.roots, self.make)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            record = next(t for t in tensors((args, kwargs)) if isinstance(t, TrackedParameter)).record
            if not record.recording:
                return func(*_plain(args), **_plain(kwargs))
            composite = COMPOSITES.get(func)
            if composite is not None:
                result = composite(record, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            others = [t for t in tensors((args, kwargs)) if not isinstance(t, TrackedParameter)]
            if not others:
                return _stay(record, func, args, kwargs)
            site = _site(func, args, kwargs, others)
            if record.following:
                return _follow(record, site, func, args, kwargs, others)
            answer = record.sites.look(site)
            if not any(answer.operands):
                return _stay(record, func, args, kwargs)
            look = _Look(record, site, others, answer)
            rule = RULES.get(func)
            if rule is not None:
                result = rule(record, look, *args, **kwargs)
                if result is not NotImplemented:
                    return result
            (result_at,) = answer.results
            assert isinstance(result_at, UnitDim)
            return _meet(record, func, args, kwargs, look=look, result_at=result_at)


class _Look:
    """Where operands of one use have units, by identity.

    Raises:
        RuntimeError: an operand can't have the batch's units where it was found to have them.
    """

    def __init__(self, record: BackwardRecord, site: Site, others: list[Tensor], answer: Answer) -> None:
        units = record.sums.units
        for tensor, place in zip(others, answer.operands, strict=True):
            if place is not None and not place.fits(tensor, units=units):
                raise RuntimeError(
                    f"{site.operator} uses {', '.join(site.parameters)} with {tuple(tensor.shape)}, which "
                    f"has not the batch's {units} units in {place}, where a step that was followed had them"
                )
        self._places = {id(t): place for t, place in zip(others, answer.operands, strict=True)}

    def __call__(self, tensor: Tensor) -> UnitDim | None:
        return self._places.get(id(tensor))


def _plain(tree: Any) -> Any:
    return map_tensors(lambda t: t.plain() if isinstance(t, TrackedParameter) else t, tree)


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _changes_in_place(func: Any) -> bool:
    name = _name(func)
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or (name.startswith("__i") and name in _BROADCASTING)


def _site(func: Any, args: Any, kwargs: Any, others: list[Tensor]) -> Site:
    return Site(_name(func), tuple(sorted(_roots((args, kwargs)))), tuple(t.ndim for t in others))


def _roots(tree: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for tensor in tensors(tree):
        if isinstance(tensor, TrackedParameter):
            found.update(tensor.roots)
    return found


def _filled(tree: Any, roots: dict[str, Tensor]) -> Any:
    """`tree` with every tracked tensor computed anew from `roots`."""
    return map_tensors(lambda t: t.make(roots) if isinstance(t, TrackedParameter) else t, tree)


def _follow(
    record: BackwardRecord, site: Site, func: Any, args: Any, kwargs: Any, others: list[Tensor]
) -> Any:
    """Note where this use has units; its result is followed."""
    if any(is_total(t) for t in others):
        raise RuntimeError(
            f"{site.operator} brings {', '.join(site.parameters)} together with a mean over units at "
            f"{user_line()}. Use it on the losses of rows, before their mean; a penalty on weights belongs "
            "into the optimizer (weight_decay)"
        )
    places = tuple(units_of(t) for t in others)
    if not any(places):
        result = _stay(record, func, args, kwargs)
        record.sites.note(site, Answer(places, (None,)))
        return result
    result = func(*_plain(args), **_plain(kwargs))
    place = units_of(result) if isinstance(result, Tensor) else None
    if place is None:
        raise UnitsMixed(f"{site.operator} gives no tensor with units", place=user_line())
    known = func in RULES or site.operator in _BROADCASTING or site.operator in _JOINING
    if not known:
        alone = func(*map_tensors(own_part, _plain(args)), **map_tensors(own_part, _plain(kwargs)))
        if alone.shape != own_part(result).shape:
            raise UnitsMixed(f"{site.operator} can't be run on one unit", place=user_line())
    shared = [t for t in tensors((args, kwargs)) if isinstance(t, TrackedParameter)]
    computed = {name for t in shared if not isinstance(t.collector(), ParameterCollector) for name in t.roots}
    record.sites.note(site, Answer(places, (place,)), computed=computed)
    if result.is_floating_point() and not result.requires_grad:
        result = result + record.anchor
    return result


def _stay(record: BackwardRecord, func: Any, args: Any, kwargs: Any) -> Any:
    """No units in sight: the result is tracked as well."""
    roots = _roots((args, kwargs))
    if _changes_in_place(func) and isinstance(args[0], TrackedParameter):
        raise RuntimeError(
            f"{_name(func)} changes a value in place that was computed from {', '.join(roots)}: give it a "
            "new value instead (torch.where, torch.cat)"
        )
    if any(t.requires_grad for t in tensors((args, kwargs)) if not isinstance(t, TrackedParameter)):
        raise RuntimeError(
            f"{_name(func)} brings {', '.join(roots)} together with another parameter that was read outside "
            "of the forward of its module: move both into one module, or freeze one (requires_grad=False)"
        )
    result = func(*_plain(args), **_plain(kwargs))

    def wrap(value: Tensor, index: int | None) -> Tensor:
        def make(given: dict[str, Tensor]) -> Tensor:
            again = func(*_filled(args, given), **_filled(kwargs, given))
            value: Tensor = again if index is None else again[index]
            return value

        if not value.is_floating_point():
            return value
        return TrackedParameter.of(value, record=record, roots=roots, make=make)

    if isinstance(result, Tensor):
        shared = wrap(result, None)
        if isinstance(shared, TrackedParameter):
            shared.unrepeated = _unrepeated(record, func, args, kwargs, shared)
        return shared
    if isinstance(result, list | tuple) and all(isinstance(r, Tensor) for r in result):
        return type(result)(wrap(value, index) for index, value in enumerate(result))
    return result


def _unrepeated(
    record: BackwardRecord, func: Any, args: Any, kwargs: Any, result: TrackedParameter
) -> "TrackedParameter | None":
    """What `result` repeats, where it is known to: with as many dimensions, of size 1 where it repeats."""
    name, value = _name(func), args[0] if args else None
    if not isinstance(value, TrackedParameter):
        return None
    if name in _REPEATING:
        source = value.unrepeated if value.unrepeated is not None else value
        shape = (1,) * (result.ndim - source.ndim) + tuple(source.shape)
        if all(size in (1, now) for size, now in zip(shape, result.shape, strict=True)):
            found: TrackedParameter | None = _stay(record, torch.reshape, (source, shape), {})
            return found
    if name in _SAME_SHAPE and value.unrepeated is not None:
        again: TrackedParameter | None = _stay(record, func, (value.unrepeated, *args[1:]), kwargs)
        return again
    return None


def _rowwise(
    record: BackwardRecord, value: TrackedParameter, *, rank: int, place: UnitDim, size: int
) -> Tensor:
    """`value`, of size 1 at `place` among `rank` dimensions, repeated along it; copies keep gradients."""
    one = value.plain().reshape(*(1,) * (rank - value.ndim), *value.shape)
    collector, units, shape = value.collector(), record.sums.units, value.shape
    collector.expect_use()

    def note(grad: Tensor) -> None:
        with exact_products():
            own = place.split(grad, units=units).sum(dim=place.dim + 1, dtype=torch.float32)
            collector.add(KeptGradient(own.reshape(units, *shape)))

    wanted = [size if dim == place.dim else -1 for dim in range(rank)]
    return tap(record, one.expand(wanted), note)


def _aligned(record: BackwardRecord, value: TrackedParameter, *, place: UnitDim) -> Tensor:
    """`value` has an entry of its own for each unit, all computed from parameters that units share."""
    collector, units = DerivedCollector(record, value.roots, value.make), record.sums.units
    collector.expect_use()

    def note(grad: Tensor) -> None:
        own = place.split(grad.float(), units=units)  # (U, …)
        every = torch.arange(units, device=grad.device)
        apart = own.new_zeros(units, *own.shape)
        apart[every, every] = own
        collector.add(KeptGradient(torch.stack([place.join(one) for one in apart])))

    return tap(record, value.plain(), note)


def _meet(
    record: BackwardRecord, func: Any, args: Any, kwargs: Any, *, look: Look, result_at: UnitDim
) -> Any:
    """tracked values and units in one operator."""
    name = _name(func)
    if name in _BROADCASTING or name in _JOINING:
        everything, along = (args, kwargs), None
        if name in _JOINING:
            along = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        give_units = spread(record, everything, look=look, along=along)
        if give_units is not None:
            return func(*map_tensors(give_units, args), **map_tensors(give_units, kwargs))
    return _by_units(record, func, args, kwargs, look=look, result_at=result_at)


def spread(
    record: BackwardRecord, operands: Any, *, look: Look, along: int | None = None
) -> Callable[[Tensor], Tensor] | None:
    """What gives each tracked operand of a broadcast its units; None where the operands don't line up.

    Args:
        operands: tensors that are broadcast with each other.
        look: where they have units.
        along: the dimension in which they are joined instead, if they are.
    """
    everything = list(tensors(operands))
    rank = max(t.ndim for t in everything)
    found = [(t, place) for t in everything if (place := look(t)) is not None]
    places = {UnitDim(place.dim + rank - t.ndim, place.outer) for t, place in found}
    if len(places) != 1:
        return None
    (place,) = places
    size = max(t.shape[own.dim] for t, own in found)

    def size_of(tensor: Tensor) -> int:
        dim = place.dim + tensor.ndim - rank
        return tensor.shape[dim] if dim >= 0 else 1

    whole = [t for t in everything if isinstance(t, TrackedParameter)]
    if any(size_of(t) not in (1, size) for t in whole):
        return None
    if along is not None and (along % rank == place.dim or any(t.ndim != rank for t in whole)):
        return None

    def give_units(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, TrackedParameter):
            return tensor
        unrepeated = tensor.unrepeated
        if unrepeated is not None and size_of(tensor) != 1 and size_of(unrepeated) == 1:
            wide = _rowwise(record, unrepeated, rank=rank, place=place, size=size)
            return wide.expand([max(a, b) for a, b in zip(wide.shape, tensor.shape, strict=True)])
        if size_of(tensor) == 1:
            return _rowwise(record, tensor, rank=rank, place=place, size=size)
        return _aligned(record, tensor, place=UnitDim(place.dim + tensor.ndim - rank, place.outer))

    return give_units


class _Hole:
    """Stands for a tracked tensor among recorded arguments."""

    def __init__(self, value: TrackedParameter) -> None:
        self.make = value.make


def _by_units(
    record: BackwardRecord, func: Any, args: Any, kwargs: Any, *, look: Look, result_at: UnitDim
) -> Any:
    """Any other operator: record it, and run it again for each unit under torch.func."""
    roots = _roots((args, kwargs))
    result = func(*_plain(args), **_plain(kwargs))
    autocast = Autocast(result.device.type)
    places: dict[int, UnitDim | None] = {}

    def hole(tensor: Tensor) -> Any:
        if isinstance(tensor, TrackedParameter):
            return _Hole(tensor)
        kept = tensor.detach()
        places[id(kept)] = look(tensor)
        return kept

    kept_args, kept_kwargs = map_tensors(hole, args), map_tensors(hole, kwargs)

    def again(given: dict[str, Tensor], *own_args: Any, **own_kwargs: Any) -> Any:
        with autocast.again():
            return func(*_unhole(own_args, given), **_unhole(own_kwargs, given))

    collectors = {name: ParameterCollector(record, name) for name in roots}
    for collector in collectors.values():
        collector.expect_use()

    def note(grad: Tensor) -> None:
        found = per_unit_gradients(
            again,
            roots,
            kept_args,
            kept_kwargs,
            grads=[(0, grad, result_at)],
            look=lambda tensor: places.get(id(tensor)),
            units=record.sums.units,
        )
        for name, collector in collectors.items():
            collector.add(KeptGradient(found[name]))

    return tap(record, result, note)


def _unhole(tree: Any, given: dict[str, Tensor]) -> Any:
    if isinstance(tree, _Hole):
        return tree.make(given)
    if isinstance(tree, dict):
        return {key: _unhole(value, given) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_unhole(value, given) for value in tree)
    return tree
