"""Follow one step of a model from the batch to its loss, to know where every use of a parameter has units.

Every module's forward is replaced for the time of the step: parameters are tracked views, as in a step that
is clipped, and note where they meet units. What can't be followed inside a module (an operator without a
rule, one that mixes units, a number that Python reads) makes the smallest module around it with units in and
units out one that is run per unit, provided that this gives what the module gives for the whole batch: units
that it really mixes are a finding.
"""

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lightning_dp.privacy import rows
from lightning_dp.privacy.clipping._book_keeping.backward_record import BackwardRecord
from lightning_dp.privacy.clipping._book_keeping.per_unit_module import Call, over_units
from lightning_dp.privacy.clipping._book_keeping.tracked_parameter import TrackedParameter
from lightning_dp.privacy.clipping._book_keeping.tracked_views import (
    held_by,
    is_transposed_linear,
    read_by,
    tracked_views,
    values_of,
)
from lightning_dp.privacy.clipping.patching import Patches
from lightning_dp.privacy.clipping.sites import THE_STEP, Answer, PerUnit, Site, Sites, Total
from lightning_dp.privacy.clipping.trees import tensors
from lightning_dp.privacy.draws import RowAlignedRandomness, generators_put_back
from lightning_dp.privacy.rows import UnitDim

_TRIED = 3
"""Units with which a module is tried alone and together."""
_TOLERANCE = 1e-3
_UNTRUE: tuple[rows.Reads, ...] = ("low", "high", "other")


@final
class Followed:
    """A module whose steps are followed, one after another.

    Args:
        module: on the CPU; its forwards are replaced until `close`, and what a step changes in it is changed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.sites = Sites()
        self._names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        self._record = BackwardRecord(None, sites=self.sites, following=True)  # type: ignore[arg-type]
        self._patches = Patches()
        self._module = module
        self._patch()

    def _patch(self) -> None:
        self._patches.undo()
        for path, child in self._module.named_modules():
            if not isinstance(child, nn.ParameterList | nn.ParameterDict):
                self._patches.put(child, self._forward(child, path))

    def step(self, loss: Callable[[], Any], *, mixing: bool = False, seed: int | None = 0) -> None:
        """Follow one step; `loss` returns a scalar mean over units, or a loss a row.

        A number of several units that Python reads is no fault where the loss is the same with other
        numbers, as where it is only written down: then the step runs some times more.

        Args:
            loss: runs a step.
            mixing: go on where units are mixed, since somebody answers for it.
            seed: of the generators, which are put back; None is the state in which they are.

        Raises:
            UnitsMixed: outside of all modules that could be run per unit; says where.
            RuntimeError: a parameter is read outside of all forwards.
            Exception: whatever the step raises itself.
        """
        before = self.sites.mark()
        try:
            strays = self._run(loss, reads="true" if mixing else "refused", mixing=mixing, seed=seed)[1]
        except rows.ReadByPython:
            self.sites.back_to(before)
            true, strays = self._run(loss, reads="true", seed=seed)
            for reads in _UNTRUE:
                self.sites.back_to(before)
                try:
                    other, _ = self._run(loss, reads=reads, seed=seed)
                except (ArithmeticError, ValueError):
                    if reads == "other":
                        raise
                    continue  # far off, as a logarithm of it may be: the others decide
                if true is None or other is None or not _same(true, other):
                    raise
        if strays:
            for name in strays:
                self._read_further_out(name)
            self.sites.back_to(before)
            self._patch()
            self.step(loss, mixing=mixing, seed=seed)
        self.sites.settle()

    def _run(
        self, loss: Callable[[], Any], *, reads: rows.Reads, mixing: bool = False, seed: int | None
    ) -> tuple[Tensor | None, set[str]]:
        """The first unit's loss, and the parameters that were read behind all forwards."""
        outside = read_by(self._module, self._names, more=self.sites.readers.get(THE_STEP, ()))
        with (
            generators_put_back(torch.device("cpu"), seed=seed),
            torch.enable_grad(),
            rows.following(reads=reads, mixing=mixing),
        ):
            with tracked_views(outside, self._record):
                found = loss()
            if isinstance(found, Tensor):
                rows.check_loss(found)
            nodes = _graph(found) if isinstance(found, Tensor) else []
            strays = {self._names[id(p)] for node in nodes if id(p := _leaf(node)) in self._names}
            if not strays and any(map(_hand_written, nodes)):
                # A backward that somebody wrote by hand: torch's own follow from their forwards.
                (found.mean() if found.ndim else found).backward()
        return (rows.own_part(found).detach() if isinstance(found, Tensor) else None), strays

    def _read_further_out(self, name: str) -> None:
        """A forward reads a parameter of a module that it does not call: try the next code around."""
        readers = self.sites.readers
        now = [path for path, names in readers.items() if name in names]
        if THE_STEP in now:
            raise RuntimeError(
                f"the loss depends on {name} in a way that no operator shows. A parameter must be "
                "read as an attribute of its module, within the step: move what else reads it into the "
                "forward of a submodule that is called, or freeze it (requires_grad=False)"
            )
        path = min([*now, name.rpartition(".")[0]], key=len)
        readers.setdefault(path.rpartition(".")[0] if path else THE_STEP, set()).add(name)

    def close(self) -> None:
        """Leave the module as it was found."""
        self._patches.undo()

    def _forward(self, module: nn.Module, path: str) -> Callable[..., Any]:
        original = module.forward
        own = read_by(module, self._names, more=self.sites.readers.get(path, ()))
        transposed = is_transposed_linear(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._record.recording:
                return original(*args, **kwargs)
            output = call_of(*args, **kwargs)
            self._note_call(path, (args, kwargs), output)
            return output

        def call_of(*args: Any, **kwargs: Any) -> Any:
            if transposed and len(args) == 1 and not kwargs and rows.is_followed(args[0]):
                # It folds rows by itself; the engine's rule goes around that.
                site = Site("linear", tuple(sorted(one.name for one in own)), (args[0].ndim,))
                place = rows.units_of(args[0])
                self.sites.note(site, Answer((place,), (place,)))
                values = {one.name: _plain(one.holder._parameters[one.attribute]).detach() for one in own}
                with self._record.pause(), values_of(own, values):
                    return original(*args) + self._record.anchor
            before = self.sites.mark()
            try:
                with tracked_views(own, self._record):
                    return original(*args, **kwargs)
            except Exception as error:
                call = Call(args, kwargs)
                if not any(rows.is_followed(t) and not rows.is_total(t) for t in call.tensors):
                    raise
                self.sites.back_to(before)
                return self._alone(module, path, original, call, error)

        return forward

    def _note_call(self, path: str, given: Any, output: Any) -> None:
        operands = list(tensors(given))
        site = Site("call", (path,), tuple(t.ndim for t in operands))
        self.sites.note(site, Answer(tuple(map(_units, operands)), tuple(map(_outcome, tensors(output)))))

    def _alone(
        self, module: nn.Module, path: str, original: Callable[..., Any], call: Call, error: Exception
    ) -> Any:
        """Outputs of a module that is to be run per unit from now on.

        Raises:
            Exception: `error`, if it can't be, or its units are not independent.
        """
        places = [None if isinstance(t, TrackedParameter) else rows.units_of(t) for t in call.tensors]
        own = [_plain(rows.own_part(t)).detach() for t in call.tensors]
        split = [place is not None for place in places]
        inputs = [_varied(t) if apart else t for t, apart in zip(own, split, strict=True)]
        whole = [t if place is None else place.join(t) for t, place in zip(inputs, places, strict=True)]
        held = held_by(module, self._names)
        values = {one.name: one.holder._parameters[one.attribute] for one in held}
        copies = {
            name: _plain(value).detach().expand(_TRIED, *value.shape).requires_grad_()
            for name, value in values.items()
            if value is not None
        }

        def each(vectorised: bool) -> list[Tensor]:
            with RowAlignedRandomness().at_work(torch.device("cpu")):
                return over_units(
                    call,
                    original,
                    inputs,
                    copies,
                    split=split,
                    held=held,
                    units=_TRIED,
                    vectorised=vectorised,
                )[0]

        with self._record.pause():
            try:
                with RowAlignedRandomness().at_work(torch.device("cpu")):
                    together, _ = call.run(original, whole)
                apart = each(False)
            except Exception:
                raise error  # noqa: B904 (what went wrong at first says more)
            given = {id(t) for t, one in zip(whole, split, strict=True) if not one}
            given |= {id(t) for t in (*module.parameters(), *module.buffers())}
            found = [
                None if id(one) in given else _place(one, many)
                for one, many in zip(together, apart, strict=True)
            ]
            if any(place is False for place in found) or len(together) != len(apart):
                raise error
            try:
                vectorised = all(map(_same, each(True), apart))
            except Exception:
                vectorised = False
        outputs = tuple(place for place in found if place is not False)
        self.sites.modules.setdefault(path, {})[tuple(t.ndim for t in call.tensors)] = PerUnit(
            inputs=tuple(places), outputs=outputs, vectorised=vectorised, why=str(error)
        )
        # Once more for the first unit, so that autograd's graph goes on through the module.
        fixed = {name: copy.detach()[0] for name, copy in copies.items()}
        with self._record.pause(), values_of(held, fixed):
            first, result = call.run(original, [_plain(rows.own_part(t)) for t in call.tensors])
        return result.filled([self._followed(one, at) for one, at in zip(first, outputs, strict=True)])

    def _followed(self, unit: Tensor, place: UnitDim | Total | None) -> Tensor:
        """A unit's part of an output, to be followed on."""
        tensor = rows.mean_of(unit) if isinstance(place, Total) else rows.like(unit, place)
        return tensor + self._record.anchor if tensor.is_floating_point() else tensor


def _units(tensor: Tensor) -> UnitDim | None:
    return None if isinstance(tensor, TrackedParameter) or rows.is_total(tensor) else rows.units_of(tensor)


def _outcome(tensor: Tensor) -> UnitDim | Total | None:
    return Total.MEAN if rows.is_total(tensor) else _units(tensor)


def _plain(value: Any) -> Tensor:
    return value.plain() if isinstance(value, TrackedParameter) else value


def _varied(unit: Tensor) -> Tensor:
    """(U, …): one unit's part and others like it. Whole numbers keep their values, being indices."""
    copies = unit.expand(_TRIED, *unit.shape)
    if not unit.is_floating_point():
        if unit.ndim < 2 or unit.dtype == torch.bool:
            return copies.clone()
        return torch.stack([copy.roll(number, dims=-1) for number, copy in enumerate(copies)])
    scale = 1 + 0.25 * torch.arange(_TRIED, dtype=unit.dtype).view(-1, *(1,) * unit.ndim)
    return copies * scale


def _same(left: Tensor, right: Tensor) -> bool:
    left, right = left.detach(), right.detach()
    if left.shape != right.shape:
        return False
    if not left.is_floating_point():
        return bool(torch.equal(left, right))
    size = float(right.abs().nan_to_num(0, 0, 0).max()) if right.numel() else 0.0
    return bool(torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE * size, equal_nan=True))


def _place(together: Tensor, apart: Tensor) -> UnitDim | Total | Literal[False]:
    """Where the output for the whole batch has what units give apart, (U, …); False where it is elsewhere."""
    if together.ndim == 0 and apart.requires_grad:
        return Total.MEAN if _same(apart.mean(dim=0), together) else False
    if together.ndim != apart.ndim - 1:
        return False
    for dim in range(together.ndim):
        for outer in dict.fromkeys((1, apart.shape[dim + 1])):
            place = UnitDim(dim, outer)
            if outer and apart.shape[dim + 1] % outer == 0 and _same(place.join(apart), together):
                return place
    return False


def _graph(loss: Tensor) -> list[Any]:
    """Every node of autograd's graph behind a loss."""
    waiting, seen = [loss.grad_fn], dict[Any, None]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = None
            waiting.extend(function for function, _ in node.next_functions)
    return list(seen)


def _hand_written(node: Any) -> bool:
    """Whether somebody wrote a node's backward by hand, outside of torch."""
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return False
    written: Any = node
    return not written._forward_cls.__module__.startswith("torch.")


def _leaf(node: Any) -> Tensor | None:
    """The parameter whose gradient a node accumulates."""
    return node.variable if type(node).__name__ == "AccumulateGrad" else None
