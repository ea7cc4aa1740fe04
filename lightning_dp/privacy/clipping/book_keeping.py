"""The fast exact engine: one backward, no ordinary weight gradient, the cheapest norm for each layer.

Layers' forwards are replaced on the instances that own trainable parameters. Their backward forms the
input's gradient only, and per-unit norms while activation A and output gradient G are in cache. The
one weight-sized product that every training step needs is done afterwards with the clip factors c in
it, Σ_u c_u · g_uᵀ a_u = (c·G)ᵀ A: book-keeping, Bu et al. 2023, arXiv 2210.00038. How a layer's norms
come about is `cost.py`'s choice. Parameters without a rule are followed operator by operator
(`shared.py`); one that escapes even that is an error, never a silent omission.

torch.compile: layers with trainable parameters run eagerly between compiled pieces. Activation
checkpointing: both kinds work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Registers the operators' rules.
import lightning_dp.privacy.clipping._book_keeping.functional_rules  # noqa: F401
from lightning_dp.privacy.clipping._book_keeping import layer_ops
from lightning_dp.privacy.clipping._book_keeping.backward_record import (
    BackwardRecord,
    GradientCollector,
    ParameterCollector,
    TransposedCollector,
)
from lightning_dp.privacy.clipping._book_keeping.per_unit_module import run_per_unit
from lightning_dp.privacy.clipping._book_keeping.tracked_parameter import TrackedParameter
from lightning_dp.privacy.clipping._book_keeping.tracked_views import (
    Held,
    held_by,
    is_transposed_linear,
    read_by,
    tracked_views,
)
from lightning_dp.privacy.clipping._book_keeping.untrusted import Untrusted
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.patching import Patches
from lightning_dp.privacy.clipping.sites import THE_STEP, Site
from lightning_dp.privacy.clipping.trees import tensors
from lightning_dp.privacy.clipping.unit_sums import UnitSums

_REFUSED: dict[type, str] = {
    nn.modules.batchnorm._BatchNorm: "it mixes rows; use nn.GroupNorm",
    nn.modules.lazy.LazyModuleMixin: "run one forward before attaching, so that its parameters exist",
}


class BookKeeping(ClippingEngine):
    """Exact per-unit clipping at close to the cost of ordinary training. Default engine."""

    def __init__(self) -> None:
        self._record: BackwardRecord | None = None
        self._patches = Patches()
        self._outside: list[Held] = []

    def attach(self, module: nn.Module, *, function: ClippingFunction, max_grad_norm: float) -> None:
        if self._record is not None:
            raise ValueError("This engine is attached already: call detach() first.")
        sums = UnitSums(module, function=function, max_grad_norm=max_grad_norm)
        for path, child in module.named_modules():
            for kind, way_out in _REFUSED.items():
                own = any(id(p) in sums.names for p in child.parameters(recurse=False))
                if own and isinstance(child, kind):
                    raise ValueError(
                        f"{path or 'The module'} ({type(child).__name__}) can't be clipped per unit: "
                        f"{way_out}, or freeze it (requires_grad=False)."
                    )
        record = BackwardRecord(sums, sites=self.sites)
        self._outside = read_by(module, sums.names, more=self.sites.readers.get(THE_STEP, ()))
        if any(
            isinstance(m, torch._dynamo.OptimizedModule) or m._compiled_call_impl for m in module.modules()
        ):
            # Code compiled before would bypass the replaced forwards.
            torch.compiler.reset()
        try:
            for path, child in module.named_modules():
                owned = read_by(child, sums.names, more=self.sites.readers.get(path, ()))
                if owned or path in self.sites.modules:
                    self._patches.put(child, _forward(child, record, owned, path))
        except BaseException:
            self._patches.undo()
            raise
        self._record, self._sums = record, sums

    def _recording(self) -> BackwardRecord:
        self._attached()
        assert self._record is not None
        return self._record

    @contextmanager
    def stepping(self) -> Iterator[None]:
        record = self._recording()
        with tracked_views(self._outside if record.recording else [], record):
            yield

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float = 1.0) -> None:
        record = self._recording()
        record.clear()
        record.sums.expect(unit_weights=unit_weights, rows_per_unit=rows_per_unit, loss_scale=loss_scale)

    def collect(self) -> Tensor:
        record = self._recording()
        try:
            record.sums.check_untracked(set(), engine="BookKeeping")
            with exact_products():
                return self._collect(record)
        finally:
            record.clear()
            record.sums.forget()

    def _collect(self, record: BackwardRecord) -> Tensor:
        squares = {name: record.squared_norms(name) for name in list(record.uses)}
        untrusted = Untrusted(record.uses, squares, sums=record.sums)
        norms, coefficients = record.sums.clip_coefficients(squares)
        if (
            record.sums.weightless
        ):  # padding, or a pass for the norms alone: no sums of a weight's size for it
            return norms
        spoilt = norms.isnan()
        some_left_out = untrusted.any or bool(spoilt.any())
        for name in list(record.uses):
            # Popped, so that each layer's A and G are free before the next layer's product.
            uses = record.uses.pop(name)
            if some_left_out:
                alone = untrusted.sum(name, uses, coefficients[name])
                if alone is not None:
                    record.sums.add(name, alone)
            for use in uses:
                if some_left_out:
                    use.empty(untrusted.left_out(name, spoilt))
                record.sums.add(name, use.weighted_sum(coefficients[name]))
        return norms

    def detach(self) -> None:
        self._patches.undo()
        self._outside = []
        self._record = self._sums = None


def _forward(module: nn.Module, record: BackwardRecord, owned: list[Held], path: str) -> Callable[..., Any]:
    """What replaces module.forward."""
    original = module.forward
    hows = record.sites.modules.get(path, {})
    held = held_by(module, record.sums.names)

    def general(*args: Any, **kwargs: Any) -> Any:
        if not record.recording:
            return original(*args, **kwargs)
        with tracked_views(owned, record):
            return original(*args, **kwargs)

    def perhaps_alone(*args: Any, **kwargs: Any) -> Any:
        how = hows.get(tuple(t.ndim for t in tensors((args, kwargs)))) if record.recording else None
        if how is None:
            return general(*args, **kwargs)
        return run_per_unit(record, original, args, kwargs, held=held, how=how)

    if hows:
        return perhaps_alone
    if "forward" in module.__dict__:
        return general
    own = {one.attribute: one.name for one in owned if one.holder is module}
    if type(module).forward is nn.Linear.forward and "weight" in module._parameters:
        return _linear_forward(module, record, own, general)
    if is_transposed_linear(module):
        return _linear_forward(module, record, own, general, transposed=True)
    return general


def _linear_forward(
    module: nn.Module,
    record: BackwardRecord,
    own: dict[str, str],
    general: Callable[..., Any],
    *,
    transposed: bool = False,
) -> Callable[..., Any]:
    """The most frequent layer, without the detour over tracked weights."""
    collectors: dict[str, GradientCollector] = {
        attribute: ParameterCollector(record, name) for attribute, name in own.items()
    }
    if transposed and "weight" in collectors:
        collectors["weight"] = TransposedCollector(collectors["weight"])

    parameters = tuple(sorted(own.values()))

    def forward(*args: Any, **kwargs: Any) -> Any:
        plain = len(args) == 1 and not kwargs and type(args[0]) is Tensor
        if not plain or not record.recording:
            return general(*args, **kwargs)
        (x,) = args
        answer = record.sites.answers.get(Site("linear", parameters, (x.ndim,)))
        place = answer[0].operands[0] if answer is not None and len(answer) == 1 else None
        if place is None or place.dim >= x.ndim - 1 or not place.fits(x, units=record.sums.units):
            return general(*args, **kwargs)
        weight, bias = _value(module._parameters["weight"]), _value(module._parameters["bias"])
        assert weight is not None
        return layer_ops.linear(
            record,
            x,
            weight.T if transposed else weight,
            bias,
            units_at=place,
            weight_collector=collectors.get("weight"),
            bias_collector=collectors.get("bias"),
        )

    return forward


def _value(parameter: Tensor | None) -> Tensor | None:
    """Detached, whether or not a parent's forward has put a tracked view in its place."""
    if parameter is None:
        return None
    return parameter.plain() if isinstance(parameter, TrackedParameter) else parameter.detach()
