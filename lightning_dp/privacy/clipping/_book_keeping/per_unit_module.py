"""A module that is run for each unit by itself: the way out where nothing smaller can be followed.

Each unit gets a copy of the module's parameters, which all have the parameters' values, so what reaches a
copy in backward is that unit's gradient. Whatever the module does, no unit can see another one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lightning_dp.privacy.clipping._book_keeping.backward_record import (
    BackwardRecord,
    GradientCollector,
    ParameterCollector,
)
from lightning_dp.privacy.clipping._book_keeping.layer_ops import tap
from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import KeptGradient
from lightning_dp.privacy.clipping._book_keeping.tracked_parameter import TrackedParameter
from lightning_dp.privacy.clipping._book_keeping.tracked_views import Held, values_of
from lightning_dp.privacy.clipping.per_unit import unfussed, vectorised as at_once
from lightning_dp.privacy.clipping.sites import PerUnit, Total
from lightning_dp.privacy.rows import UnitDim


class Call:
    """The arguments of a call, tensors apart from all else."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        self._leaves, self._spec = tree_flatten((args, kwargs))
        self._at = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [self._leaves[i] for i in self._at]

    def run(self, function: Callable[..., Any], tensors: Sequence[Tensor]) -> tuple[list[Tensor], "Result"]:
        """Tensors that the call returns with `tensors` in place of its own, and what else it returns."""
        leaves = list(self._leaves)
        for i, tensor in zip(self._at, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        found, spec = tree_flatten(function(*args, **kwargs))
        return [leaf for leaf in found if isinstance(leaf, Tensor)], Result(found, spec)


class Result:
    """What a call returned, to be filled with other tensors."""

    def __init__(self, leaves: list[Any], spec: TreeSpec) -> None:
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._spec = spec

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The same with `tensors`."""
        for i, tensor in zip(self._at, tensors, strict=True):
            self._leaves[i] = tensor
        return tree_unflatten(self._leaves, self._spec)


def over_units(
    call: Call,
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    copies: Mapping[str, Tensor],
    *,
    split: Sequence[bool],
    held: Sequence[Held],
    units: int,
    vectorised: bool,
) -> tuple[list[Tensor], Result]:
    """Outputs of a call unit by unit, each stacked (U, …).

    Args:
        call: its arguments' structure.
        function: what is called.
        inputs: (U, …) where `split`, else the same for all.
        copies: by parameter name (U, *shape).
        split: of each input.
        held: where the parameters are.
        units: U.
        vectorised: by vmap.
    """
    names, kept = list(copies), list[Result]()

    def one(own: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        with values_of(held, dict(zip(names, values, strict=True))):
            found, result = call.run(function, own)
        kept.append(result)
        return found

    if vectorised:
        dims = ([0 if one else None for one in split], [0] * len(names))
        run = vmap(one, in_dims=dims, randomness="different")
        with unfussed():
            stacked = at_once(lambda: run(list(inputs), list(copies.values())))
        return list(stacked), kept[-1]
    # unbind, as indexing would make a gradient of all units' size for each of them
    parts = [t.unbind(0) if apart else (t,) * units for t, apart in zip(inputs, split, strict=True)]
    values = [t.unbind(0) for t in copies.values()]
    found = [one([part[u] for part in parts], [value[u] for value in values]) for u in range(units)]
    return [torch.stack(outputs) for outputs in zip(*found, strict=True)], kept[-1]


def run_per_unit(
    record: BackwardRecord,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    *,
    held: Sequence[Held],
    how: PerUnit,
) -> Any:
    """Call a module's own forward unit by unit; per-unit gradients of its parameters go to the record."""
    units, call = record.sums.units, Call(args, kwargs)

    def copies_of(value: Tensor, collector: GradientCollector) -> Tensor:
        collector.expect_use()
        return tap(
            record, value.expand(units, *value.shape), lambda grad: collector.add(KeptGradient(grad.float()))
        )

    inputs, split = [], []
    for tensor, place in zip(call.tensors, how.inputs, strict=True):
        if isinstance(tensor, TrackedParameter):
            inputs.append(copies_of(tensor.plain(), tensor.collector()))
        elif place is None:
            inputs.append(tensor)
        else:
            _check(tensor, place, units=units)
            inputs.append(place.split(tensor, units=units))
        split.append(isinstance(tensor, TrackedParameter) or place is not None)
    parameters = {one.name: one.holder._parameters[one.attribute] for one in held}
    copies = {
        name: copies_of(
            value.plain() if isinstance(value, TrackedParameter) else value.detach(),
            ParameterCollector(record, name),
        )
        for name, value in parameters.items()
        if value is not None
    }
    with record.pause():
        stacked, result = over_units(
            call, function, inputs, copies, split=split, held=held, units=units, vectorised=how.vectorised
        )
    return result.filled([joined(one, place) for one, place in zip(stacked, how.outputs, strict=True)])


def joined(stacked: Tensor, place: UnitDim | Total | None) -> Tensor:
    """What a module returns for the batch, from what it returns for each unit, (U, …)."""
    if place is None:
        return stacked[0]
    return stacked.mean(dim=0) if isinstance(place, Total) else place.join(stacked)


def _check(tensor: Tensor, place: UnitDim, *, units: int) -> None:
    if not place.fits(tensor, units=units):
        raise RuntimeError(
            f"a module that is run per unit gets {tuple(tensor.shape)}, which has not the batch's {units} "
            f"units in {place}, where a step that was followed had them"
        )
