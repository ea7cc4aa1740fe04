"""Layers whose backward gives the input's gradient and, instead of the weight's, per-unit uses.

Each function computes what its namesake in `torch.nn.functional` does. Weights come in detached, with
a sink for each that is trainable; autograd never sees them, so no ordinary weight gradient is formed.

Shapes: R rows, … further dimensions, as in the namesakes. `units_at` is where inputs have their units.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_dp.privacy.clipping.convolutions import ConvUse
from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.clipping.tape import Sink, Tape
from lightning_dp.privacy.clipping.uses import KeptUse, LookupUse, OuterUse
from lightning_dp.privacy.rows import UnitDim


def _announce(*sinks: Sink | None) -> None:
    for sink in sinks:
        if sink is not None:
            sink.announce()


def _lowered(*values: Tensor | None) -> list[Tensor | None]:
    """Operands in autocast's precision, as autocast would have cast them itself."""
    device_type = next(v for v in values if v is not None).device.type
    if not torch.is_autocast_enabled(device_type):
        return list(values)
    dtype = torch.get_autocast_dtype(device_type)
    return [v.to(dtype) if v is not None and v.is_floating_point() else v for v in values]


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()  # entering autocast costs more than a small layer


def _bias_use(tape: Tape, grad: Tensor, where: UnitDim) -> KeptUse:
    """Gradient of a bias along the last dimension: the sum over a unit's tokens."""
    return KeptUse(tape.unitwise(grad, where).sum(dim=1, dtype=torch.float32))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.tape, ctx.units_at, ctx.weight_sink, ctx.bias_sink = rest
        ctx.save_for_backward(x if ctx.weight_sink is not None else None, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x = torch.matmul(grad, weight) if ctx.needs_input_grad[0] else None
        with exact_products():
            if ctx.weight_sink is not None:
                inputs, grads = (ctx.tape.unitwise(t, ctx.units_at) for t in (x, grad))
                ctx.weight_sink.add(OuterUse(inputs, grads))
            if ctx.bias_sink is not None:
                ctx.bias_sink.add(_bias_use(ctx.tape, grad, ctx.units_at))
        return grad_x, *(None,) * 7


def linear(
    tape: Tape,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    units_at: UnitDim,
    weight_sink: Sink | None,
    bias_sink: Sink | None,
) -> Tensor:
    """(…, d) → (…, p), units in any dimension but the last."""
    _announce(weight_sink, bias_sink)
    operands = _lowered(x, weight, bias)
    with _no_autocast(x.device.type):
        result: Tensor = _Linear.apply(*operands, tape.anchor, tape, units_at, weight_sink, bias_sink)
        return result


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.tape, ctx.units_at, ctx.weight_sink, ctx.bias_sink, ctx.shape, eps = rest
        out, mean, rstd = torch.native_layer_norm(x, ctx.shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.native_layer_norm_backward(
                grad, x, ctx.shape, mean, rstd, weight, bias, [True, False, False]
            )[0]
        last = len(ctx.shape)
        with exact_products():
            if ctx.weight_sink is not None:
                product = (
                    torch.sub(x, mean).mul_(rstd).mul_(grad)
                    if x.dtype == torch.float32
                    else ((x.float() - mean) * rstd * grad)
                )
                tokens = ctx.tape.unitwise(product, ctx.units_at, last=last)
                ctx.weight_sink.add(KeptUse(tokens.sum(dim=1)))
            if ctx.bias_sink is not None:
                tokens = ctx.tape.unitwise(grad, ctx.units_at, last=last)
                ctx.bias_sink.add(KeptUse(tokens.sum(dim=1, dtype=torch.float32)))
        return grad_x, *(None,) * 9


def layer_norm(
    tape: Tape,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    units_at: UnitDim,
    weight_sink: Sink | None,
    bias_sink: Sink | None,
) -> Tensor:
    """(…, *shape) → the same, units in any dimension of the former."""
    _announce(weight_sink, bias_sink)
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        x = x.float()
    with _no_autocast(x.device.type):
        rest = tape, units_at, weight_sink, bias_sink, tuple(shape), eps
        result: Tensor = _LayerNorm.apply(x, weight, bias, tape.anchor, *rest)
        return result


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.tape, ctx.weight_sink, ctx.bias_sink, ctx.groups, eps = rest
        x = x.contiguous()
        ctx.sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), ctx.groups)
        out, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, rstd, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.native_group_norm_backward(
                grad, x, mean, rstd, weight, *ctx.sizes, [True, False, False]
            )[0]
        rows, channels, _, groups = ctx.sizes
        with exact_products():
            grads = grad.float().view(rows, channels, -1)
            if ctx.weight_sink is not None:
                centred = x.float().view(rows, groups, -1) - mean.float().view(rows, groups, 1)
                normed = centred.mul_(rstd.float().view(rows, groups, 1)).view(rows, channels, -1)
                products = normed.mul_(grads).sum(dim=2)  # (R, C)
                ctx.weight_sink.add(KeptUse(ctx.tape.unitwise(products, UnitDim(0)).sum(dim=1)))
            if ctx.bias_sink is not None:
                ctx.bias_sink.add(KeptUse(ctx.tape.unitwise(grads.sum(dim=2), UnitDim(0)).sum(dim=1)))
        return grad_x, *(None,) * 8


def group_norm(
    tape: Tape,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    weight_sink: Sink | None,
    bias_sink: Sink | None,
) -> Tensor:
    """(R, C, …) → the same."""
    _announce(weight_sink, bias_sink)
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        x = x.float()
    with _no_autocast(x.device.type):
        result: Tensor = _GroupNorm.apply(
            x, weight, bias, tape.anchor, tape, weight_sink, bias_sink, groups, eps
        )
        return result


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, anchor: Tensor, *rest: Any) -> Tensor:
        ctx.tape, ctx.units_at, ctx.weight_sink = rest
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x = (grad * weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        with exact_products():
            tokens = ctx.tape.unitwise(x.float() * grad, ctx.units_at, last=weight.ndim)
            ctx.weight_sink.add(KeptUse(tokens.sum(dim=1)))
        return grad_x, *(None,) * 5


def rms_norm(
    tape: Tape,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    eps: float | None,
    *,
    units_at: UnitDim,
    weight_sink: Sink,
) -> Tensor:
    """(…, *shape) → the same, units in any dimension of the former."""
    _announce(weight_sink)
    normed = F.rms_norm(x, tuple(shape), None, eps)
    result: Tensor = _Scale.apply(normed, weight, tape.anchor, tape, units_at, weight_sink)
    return result


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.tape, ctx.weight_sink, ctx.bias_sink, ctx.where = rest
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, bias, **ctx.where)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        where = ctx.where
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.convolution_backward(
                grad,
                x,
                weight,
                None,
                where["stride"],
                where["padding"],
                where["dilation"],
                False,
                (0, 0),
                where["groups"],
                (True, False, False),
            )[0]
        with exact_products():
            if ctx.weight_sink is not None:
                units = ctx.tape.sums.units
                ctx.weight_sink.add(ConvUse(x, grad, units=units, shape=weight.shape, **where))
            if ctx.bias_sink is not None:
                sums = grad.flatten(2).sum(dim=2, dtype=torch.float32)
                ctx.bias_sink.add(KeptUse(ctx.tape.unitwise(sums, UnitDim(0)).sum(dim=1)))
        return grad_x, *(None,) * 7


def conv2d(
    tape: Tape,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    weight_sink: Sink | None,
    bias_sink: Sink | None,
) -> Tensor:
    """(R, d, h, w) → (R, p, h', w')."""
    _announce(weight_sink, bias_sink)
    if padding == "same":
        # Odd totals put the extra zero at the end, as torch does.
        totals = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        x = F.pad(x, [totals[1] // 2, totals[1] - totals[1] // 2, totals[0] // 2, totals[0] - totals[0] // 2])
    if isinstance(padding, str):
        padding = (0, 0)
    where = {
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
        "groups": groups,
    }
    operands = _lowered(x, weight, bias)
    with _no_autocast(x.device.type):
        result: Tensor = _Conv2d.apply(*operands, tape.anchor, tape, weight_sink, bias_sink, where)
        return result


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, anchor: Tensor, *rest: Any) -> Tensor:
        ctx.tape, ctx.units_at, ctx.weight_sink, ctx.padding_idx = rest
        ctx.save_for_backward(index)
        ctx.num_embeddings = len(weight)
        return F.embedding(index, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        with exact_products():
            grads = ctx.tape.unitwise(grad, ctx.units_at)
            indices = ctx.tape.unitwise(index, ctx.units_at, last=0)
            if ctx.padding_idx is not None:
                grads = grads.masked_fill((indices == ctx.padding_idx)[:, :, None], 0)
            ctx.weight_sink.add(LookupUse(indices, grads, num_embeddings=ctx.num_embeddings))
        return (None,) * 7


def embedding(
    tape: Tape,
    index: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    *,
    units_at: UnitDim,
    weight_sink: Sink,
) -> Tensor:
    """(…) int → (…, D), units in any dimension of the former."""
    _announce(weight_sink)
    result: Tensor = _Embedding.apply(index, weight, tape.anchor, tape, units_at, weight_sink, padding_idx)
    return result


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
        ctx.callback = callback
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.callback(grad)
        return grad, None, None


def tap(tape: Tape, value: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
    """`value` itself; `callback` gets the loss's gradient with respect to it."""
    result: Tensor = _Tap.apply(value, tape.anchor, callback)
    return result
