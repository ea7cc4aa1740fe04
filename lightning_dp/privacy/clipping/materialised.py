"""Per-sample gradients stored in full, by Opacus's rules; torch.func where there is no rule.

Simple and memory-hungry: U copies of the trainable parameters. `BookKeeping` is the fast engine.
Opacus serves as a library of rules; its GradSampleModule and its hooks are not used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.exact import kept_sum
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.per_unit import per_unit_gradients
from lightning_dp.privacy.clipping.sites import Answer, Site
from lightning_dp.privacy.clipping.trees import Autocast, map_tensors, separate, tensors
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.rows import UnitDim


@dataclass
class _Call:
    """One call of a module that owns trainable parameters."""

    path: str
    module: nn.Module
    args: Any
    kwargs: Any
    autocast: Autocast
    answer: Answer
    grads: dict[int, Tensor] = field(default_factory=dict)

    def note_grad(self, index: int, grad: Tensor) -> None:
        """Add the loss's gradient with respect to output `index`."""
        seen = self.grads.get(index)
        self.grads[index] = grad.detach() if seen is None else seen + grad.detach()


class Materialised(ClippingEngine):
    """Forward hooks keep inputs, tensor hooks keep output gradients, `collect` does the rest.

    A module without an Opacus rule (bare parameters, attention, anything hand-written) is run again
    under vmap; it must therefore give the same result twice (no dropout inside it).
    """

    def __init__(self) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._calls: list[_Call] = []

    def attach(self, module: nn.Module, *, function: ClippingFunction, max_grad_norm: float) -> None:
        if self._sums is not None:
            raise ValueError("This engine is attached already: call detach() first.")
        self._sums = UnitSums(module, function=function, max_grad_norm=max_grad_norm)
        for path, child in module.named_modules():
            # MultiheadAttention uses its output projection's weight without calling it.
            deep = isinstance(child, nn.MultiheadAttention)
            if any(p.requires_grad for p in child.parameters(recurse=deep)):
                self._handles.append(child.register_forward_hook(self._recorder(path), with_kwargs=True))

    def _recorder(self, path: str) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            recording = self._sums is not None and self._sums.expecting and not self._replaying
            if not recording or not torch.is_grad_enabled():
                return None
            output = separate(output)
            device_type = next(module.parameters()).device.type
            keep = (map_tensors(Tensor.detach, args), map_tensors(Tensor.detach, kwargs))
            site = Site("call", (path,), tuple(t.ndim for t in tensors((args, kwargs))))
            call = _Call(path, module, *keep, Autocast(device_type), self.sites.look(site))
            for index, tensor in enumerate(tensors(output)):
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad, index=index: call.note_grad(index, grad))
            self._calls.append(call)
            return output

        return after

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float = 1.0) -> None:
        self._calls.clear()
        self.sites.begin()
        self._attached().expect(unit_weights=unit_weights, rows_per_unit=rows_per_unit, loss_scale=loss_scale)

    def collect(self) -> Tensor:
        sums = self._attached()
        calls = [call for call in self._calls if call.grads]
        self._calls.clear()
        per_unit: dict[str, Tensor] = {}
        self._replaying = True
        try:
            for call in calls:
                for parameter_id, units in self._unit_gradients(call).items():
                    name = sums.names[parameter_id]
                    per_unit[name] = per_unit[name] + units if name in per_unit else units
        finally:
            self._replaying = False
        sums.check_untracked(set(per_unit), engine="Materialised")
        squares = {
            name: torch.linalg.vector_norm(grads.reshape(sums.units, -1), dim=1, dtype=torch.float64).square()
            for name, grads in per_unit.items()
        }
        norms, coefficients = sums.clip_coefficients(squares)
        for name, grads in per_unit.items():
            sums.add(name, kept_sum(grads, coefficients[name]))
        sums.forget()
        return norms

    def _unit_gradients(self, call: _Call) -> dict[int, Tensor]:
        """(U, *shape) fp32 for each trainable parameter of the called module, by its id."""
        sums = self._attached()
        for index, grad in call.grads.items():
            if not isinstance(call.answer.results[index], UnitDim):
                raise RuntimeError(
                    f"{call.path or 'The module'} returned {tuple(grad.shape)}, in which no unit has a part "
                    "of its own (inputs that are the same for all units, such as positions?): use BookKeeping"
                )
        rule = GradSampleModule.GRAD_SAMPLERS.get(type(call.module))
        first = (UnitDim(0),)
        plain = _trusted(call.module) and call.answer.operands == first and call.answer.results == first
        if rule is not None and plain:
            (grad,) = call.grads.values()
            (value,) = tensors((call.args, call.kwargs))
            if value.is_floating_point():
                # As the forward saw it under autocast, then exact products of that.
                value = value.to(grad.dtype).float()
            # Opacus 1.6 unfolds images by their strides and is wrong for channels-last ones.
            value = value.clone(memory_format=torch.contiguous_format)
            found = rule(call.module, [value], grad.float().contiguous())
            return {
                id(p): g.float().reshape(sums.units, -1, *p.shape).sum(dim=1)
                for p, g in found.items()
                if id(p) in sums.names
            }
        return self._without_rule(call)

    def _without_rule(self, call: _Call) -> dict[int, Tensor]:
        deep = isinstance(call.module, nn.MultiheadAttention)
        own = {n: p for n, p in call.module.named_parameters(recurse=deep) if p.requires_grad}

        def again(parameters: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            with call.autocast.again():
                return functional_call(call.module, parameters, args, kwargs)

        places = {
            id(tensor): place
            for tensor, place in zip(tensors((call.args, call.kwargs)), call.answer.operands, strict=True)
        }
        grads = [
            (index, grad, place)
            for index, grad in call.grads.items()
            if isinstance(place := call.answer.results[index], UnitDim)
        ]
        try:
            found = per_unit_gradients(
                again,
                {name: parameter.detach() for name, parameter in own.items()},
                call.args,
                call.kwargs,
                grads=grads,
                look=lambda tensor: places.get(id(tensor)),
                units=self._attached().units,
            )
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"{call.path or 'The module'} can't be run on one unit of its inputs ({first}): use "
                "BookKeeping"
            ) from error
        return {id(own[name]): grads for name, grads in found.items()}

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()
        self._sums = None


def _trusted(module: nn.Module) -> bool:
    """Whether Opacus's rule for this kind of layer knows all of its options (as of 1.6)."""
    if isinstance(module, nn.Embedding):
        return module.padding_idx is None and module.max_norm is None and not module.scale_grad_by_freq
    return getattr(module, "padding_mode", "zeros") == "zeros"
