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

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Registers the operators' rules.
import lightning_dp.privacy.clipping.shared_rules  # noqa: F401
from lightning_dp.privacy.clipping import layer_ops
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.observing import Observer
from lightning_dp.privacy.clipping.patching import Patches
from lightning_dp.privacy.clipping.shared import Shared
from lightning_dp.privacy.clipping.tape import ParameterSink, Sink, Tape, TransposedSink
from lightning_dp.privacy.clipping.trees import has_rows
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.clipping.uses import OuterUse

_REFUSED: dict[type, str] = {
    nn.RNNBase: "opacus.layers has DPLSTM, DPGRU and DPRNN with the same arguments",
    nn.EmbeddingBag: "use nn.Embedding and a sum or mean over its output",
    nn.modules.batchnorm._BatchNorm: "it mixes rows; use nn.GroupNorm",
    nn.modules.lazy.LazyModuleMixin: "run one forward before attaching, so that its parameters exist",
}

_CANCELLED = 1e-3
"""A ghost norm below this share of what its terms add up to without signs is computed anew in fp64."""
_SLACK = 1e-12
"""Share of the same sum added to squared norms before clipping: bounds fp32 rounding of the clipped sum."""


class BookKeeping(ClippingEngine):
    """Exact per-unit clipping at close to the cost of ordinary training. Default engine."""

    def __init__(self) -> None:
        self._tape: Tape | None = None
        self._patches = Patches()

    def attach(self, module: nn.Module, *, function: ClippingFunction, max_grad_norm: float) -> None:
        if self._tape is not None:
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
        tape = Tape(sums)
        if any(
            isinstance(m, torch._dynamo.OptimizedModule) or m._compiled_call_impl for m in module.modules()
        ):
            # Code compiled before would bypass the replaced forwards.
            torch.compiler.reset()
        try:
            for child in module.modules():
                owned = _owned(child, sums)
                if owned:
                    self._patches.put(child, _forward(child, tape, owned))
        except BaseException:
            self._patches.undo()
            raise
        self._tape = tape

    def _attached(self) -> Tape:
        if self._tape is None:
            raise RuntimeError("This engine is not attached: call attach() first.")
        return self._tape

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float = 1.0) -> None:
        tape = self._attached()
        tape.clear()
        tape.sums.expect(unit_weights=unit_weights, rows_per_unit=rows_per_unit, loss_scale=loss_scale)

    def collect(self) -> Tensor:
        tape = self._attached()
        try:
            tape.sums.refuse_strays(set(), engine="BookKeeping")
            with exact_products():
                return self._collect(tape)
        finally:
            tape.clear()
            tape.sums.forget()

    def _collect(self, tape: Tape) -> Tensor:
        squares = {name: tape.squared_norms(name) for name in list(tape.uses)}
        slack = _recompute_cancelled(tape, squares)
        norms, coefficients = tape.sums.decide(squares, slack=slack)
        spoilt = norms.isnan()
        if spoilt.any():
            for uses in tape.uses.values():
                for use in uses:
                    use.empty(spoilt)
        for name in list(tape.uses):
            # Popped, so that each layer's A and G are free before the next layer's product.
            for use in tape.uses.pop(name):
                tape.sums.add(name, use.weighted_sum(coefficients[name]))
        return norms

    def take(self) -> dict[str, Tensor]:
        return self._attached().sums.take()

    def observe(self, observer: Observer | None) -> Observer | None:
        sums = self._attached().sums
        before, sums.observer = sums.observer, observer
        return before

    def detach(self) -> None:
        self._patches.undo()
        self._tape = None


def _recompute_cancelled(tape: Tape, squares: dict[str, Tensor]) -> Tensor | None:
    """Replace ghost norms that rounding may have spoilt; return what rounding can still hide.

    Args:
        squares: by name (U,), changed in place where tokens cancelled.

    Returns:
        (U, G) to add to squared norms before clipping; None where no ghost norm was used.
    """
    spreads = {name: uses[0].spread() for name, uses in tape.uses.items() if len(uses) == 1}
    found = {name: spread for name, spread in spreads.items() if spread is not None}
    if not found:
        return None
    total = torch.stack(list(squares.values())).sum(dim=0)
    spread_sum = torch.stack(list(found.values())).sum(dim=0)
    units = torch.nonzero(spread_sum * _CANCELLED > total).flatten()
    slack = torch.zeros(len(total), tape.sums.num_groups, device=total.device)
    for name, spread in found.items():
        use = tape.uses[name][0]
        if len(units) and isinstance(use, OuterUse):
            squares[name][units] = use.directly(units)
        slack[:, tape.sums.groups[name]] += _SLACK * spread
    return slack.nan_to_num(0.0, 0.0, 0.0)


def _owned(module: nn.Module, sums: UnitSums) -> list[tuple[nn.Module, str, str]]:
    """(holder, attribute, name) of the trainable parameters that this module's forward may read itself."""
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return []  # never called; their parent's forward reads them
    holders, others, waiting = [module], [], list(module.children())
    while waiting:
        child = waiting.pop()
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            holders.append(child)
            waiting.extend(child.children())
        else:
            others.append(child)

    def of(modules: list[nn.Module]) -> list[tuple[nn.Module, str, str]]:
        return [
            (holder, attribute, sums.names[id(parameter)])
            for holder in modules
            for attribute, parameter in holder._parameters.items()
            if parameter is not None and id(parameter) in sums.names
        ]

    own = of(holders)
    # A forward that uses parameters of its own may use a child's without calling the child
    # (MultiheadAttention its output projection's, timm's EVA its qkv's).
    return own + of(others) if own or isinstance(module, nn.MultiheadAttention) else []


def _forward(module: nn.Module, tape: Tape, owned: list[tuple[nn.Module, str, str]]) -> Callable[..., Any]:
    """What replaces module.forward."""
    original = module.forward

    def general(*args: Any, **kwargs: Any) -> Any:
        if not tape.listening:
            return original(*args, **kwargs)
        with _swapped(owned, tape):
            return original(*args, **kwargs)

    if "forward" in module.__dict__:
        return general
    own = {attribute: name for holder, attribute, name in owned if holder is module}
    if type(module).forward is nn.Linear.forward and "weight" in module._parameters:
        return _linear_forward(module, tape, own, general)
    if _is_transposed_linear(module):
        return _linear_forward(module, tape, own, general, transposed=True)
    return general


def _linear_forward(
    module: nn.Module,
    tape: Tape,
    own: dict[str, str],
    general: Callable[..., Any],
    *,
    transposed: bool = False,
) -> Callable[..., Any]:
    """The most frequent layer, without the detour over Shared weights."""
    sinks: dict[str, Sink] = {attribute: ParameterSink(tape, name) for attribute, name in own.items()}
    if transposed and "weight" in sinks:
        sinks["weight"] = TransposedSink(sinks["weight"])

    def forward(*args: Any, **kwargs: Any) -> Any:
        plain = len(args) == 1 and not kwargs and type(args[0]) is Tensor
        if not plain or not tape.listening or not has_rows(args[0], tape.sums.rows) or args[0].ndim < 2:
            return general(*args, **kwargs)
        weight, bias = _value(module._parameters["weight"]), _value(module._parameters["bias"])
        assert weight is not None
        return layer_ops.linear(
            tape,
            args[0],
            weight.T if transposed else weight,
            bias,
            weight_sink=sinks.get("weight"),
            bias_sink=sinks.get("bias"),
        )

    return forward


def _value(parameter: Tensor | None) -> Tensor | None:
    """Detached, whether or not a parent's forward has put a Shared view in its place."""
    if parameter is None:
        return None
    return parameter.plain() if isinstance(parameter, Shared) else parameter.detach()


def _is_transposed_linear(module: nn.Module) -> bool:
    """GPT-2's Conv1D of transformers: a linear layer with (inputs, outputs) weights on folded rows."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and type(module) is library.Conv1D


@contextmanager
def _swapped(owned: list[tuple[nn.Module, str, str]], tape: Tape) -> Iterator[None]:
    """Shared views in place of the parameters, for the time of one forward."""
    before = [(holder, attribute, holder._parameters[attribute]) for holder, attribute, _ in owned]
    try:
        for (holder, attribute, name), (_, _, parameter) in zip(owned, before, strict=True):
            if parameter is not None and not isinstance(parameter, Shared):
                shared: Any = Shared.parameter(parameter, tape=tape, name=name)
                holder._parameters[attribute] = shared
        yield
    finally:
        for holder, attribute, parameter in before:
            holder._parameters[attribute] = parameter
