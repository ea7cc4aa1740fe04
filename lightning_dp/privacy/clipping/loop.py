"""The slow oracle: replay every recorded call for one unit at a time, with plain autograd.

Written for clarity; every other engine is tested against it. It replays a call on a unit's rows
alone and compares with what the batch gave, so rows that see each other (BatchNorm) and calls that
can't be repeated (dropout) are refused instead of answered wrongly.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.sites import Answer, Site, Total
from lightning_dp.privacy.clipping.trees import Autocast, map_tensors, separate, tensors
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.rows import UnitDim


@dataclass
class _Call:
    """One call of a topmost module: enough to run it again."""

    path: str
    forward: Callable[..., Any]
    args: Any
    kwargs: Any
    autocast: Autocast
    answer: Answer
    outputs: list[Tensor] = field(default_factory=list)
    grads: dict[int, Tensor] = field(default_factory=dict)

    def note_grad(self, index: int, grad: Tensor) -> None:
        """Add the loss's gradient with respect to output `index`."""
        seen = self.grads.get(index)
        self.grads[index] = grad.detach() if seen is None else seen + grad.detach()


class Loop(ClippingEngine):
    """One forward and backward per unit and recorded call.

    Topmost means: called under no other recorded call, so a LightningModule whose `training_step`
    calls its children has one recorded call per child.
    """

    def __init__(self) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._calls: list[_Call] = []
        self._open: list[_Call | None] = []

    def attach(self, module: nn.Module, *, function: ClippingFunction, max_grad_norm: float) -> None:
        if self._sums is not None:
            raise ValueError("This engine is attached already: call detach() first.")
        self._sums = UnitSums(module, function=function, max_grad_norm=max_grad_norm)
        for path, child in module.named_modules():
            if any(p.requires_grad for p in child.parameters()):
                before, after = self._recorder(path)
                self._handles.append(child.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(child.register_forward_hook(after, always_call=True))

    def _recorder(self, path: str) -> tuple[Callable[..., None], Callable[..., Any]]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            topmost = not any(self._open)
            wanted = topmost and self._listening and torch.is_grad_enabled()
            call = None
            if wanted:
                device_type = next(module.parameters()).device.type
                keep = (map_tensors(Tensor.detach, args), map_tensors(Tensor.detach, kwargs))
                site = Site("call", (path,), tuple(t.ndim for t in tensors((args, kwargs))))
                call = _Call(path, module.__call__, *keep, Autocast(device_type), self.sites.look(site))
            self._open.append(call)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if not self._open:
                return None
            call = self._open.pop()
            if call is None or output is None:
                return None
            output = separate(output)
            for index, tensor in enumerate(tensors(output)):
                call.outputs.append(tensor.detach())
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad, index=index: call.note_grad(index, grad))
            self._calls.append(call)
            return output

        return before, after

    @property
    def _listening(self) -> bool:
        return self._sums is not None and self._sums.expecting and not self._replaying

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float = 1.0) -> None:
        self._calls.clear()
        self._open.clear()
        self.sites.begin()
        self._attached().expect(unit_weights=unit_weights, rows_per_unit=rows_per_unit, loss_scale=loss_scale)

    def collect(self) -> Tensor:
        sums = self._attached()
        calls = [call for call in self._calls if call.grads]
        self._calls.clear()
        units = range(sums.units)
        self._replaying = True
        try:
            per_unit = [self._unit_gradient(calls, unit) for unit in units]
        finally:
            self._replaying = False
        sums.check_untracked({name for grads in per_unit for name in grads}, engine="Loop")
        squares = {
            name: torch.stack([grads[name].double().square().sum() for grads in per_unit])
            for name in per_unit[0]
        }
        norms, coefficients = sums.clip_coefficients(squares)
        for name in per_unit[0]:
            total = torch.zeros_like(per_unit[0][name])
            for unit in units:
                # Skipped rather than multiplied by 0: 0 · NaN is NaN.
                if coefficients[name][unit] != 0:
                    total += (coefficients[name][unit] * per_unit[unit][name].double()).float()
            sums.add(name, total)
        sums.forget()
        return norms

    def _unit_gradient(self, calls: list[_Call], unit: int) -> dict[str, Tensor]:
        """What the rows of one unit delivered to each parameter that any call reached."""
        sums = self._attached()
        gradient: dict[str, Tensor] = {}

        def own(tensor: Tensor, place: UnitDim | Total | None) -> Tensor:
            return place.split(tensor, units=sums.units)[unit] if isinstance(place, UnitDim) else tensor

        for call in calls:
            places = iter(call.answer.operands)
            for index in call.grads:
                if not isinstance(call.answer.results[index], UnitDim):
                    raise RuntimeError(
                        f"{call.path or 'The module'} returned {tuple(call.outputs[index].shape)}, in which "
                        "no unit has a part of its own: return a loss a row, and take their mean last"
                    )
            with torch.enable_grad(), call.autocast.again():
                args, kwargs = map_tensors(partial(_next_own, own, places), (call.args, call.kwargs))
                outputs = list(tensors(call.forward(*args, **kwargs)))
            reached = [i for i in call.grads if outputs[i].requires_grad]
            for index in reached:
                _same(
                    outputs[index].detach(),
                    own(call.outputs[index], call.answer.results[index]),
                    path=call.path,
                )
            grads = torch.autograd.grad(
                [outputs[i] for i in reached],
                list(sums.parameters.values()),
                [own(call.grads[i], call.answer.results[i]) for i in reached],
                allow_unused=True,
            )
            for name, grad in zip(sums.parameters, grads, strict=True):
                if grad is not None:
                    gradient[name] = gradient[name] + grad.float() if name in gradient else grad.float()
        return gradient

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()
        self._open.clear()
        self._sums = None


def _next_own(own: Callable[..., Tensor], places: Iterator[UnitDim | None], tensor: Tensor) -> Tensor:
    return own(tensor, next(places))


def _same(alone: Tensor, in_batch: Tensor, *, path: str) -> None:
    # Generous: batched and single kernels round differently, dropout and BatchNorm do not hide here.
    tolerance = 5e-2 if alone.dtype in (torch.bfloat16, torch.float16) else 1e-3
    scale = float(in_batch.abs().nan_to_num(0, 0, 0).max()) if in_batch.numel() else 0.0
    if not torch.allclose(alone, in_batch, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        raise RuntimeError(
            f"{path or 'The module'} gives other values for a unit alone than within its batch: rows see "
            "each other (BatchNorm?) or the call can't be repeated (dropout?). Use an engine that does not "
            "replay, or remove the cause."
        )
