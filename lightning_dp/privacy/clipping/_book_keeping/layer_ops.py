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

from lightning_dp.privacy.clipping._book_keeping.backward_record import BackwardRecord, GradientCollector
from lightning_dp.privacy.clipping._book_keeping.convolutions import ConvolutionGradient
from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import (
    EmbeddingGradient,
    KeptGradient,
    OuterProductGradient,
)
from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.rows import UnitDim


def _announce(*collectors: GradientCollector | None) -> None:
    for collector in collectors:
        if collector is not None:
            collector.expect_use()


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


def _bias_use(record: BackwardRecord, grad: Tensor, where: UnitDim) -> KeptGradient:
    """Gradient of a bias along the last dimension: the sum over a unit's tokens."""
    return KeptGradient(record.unitwise(grad, where).sum(dim=1, dtype=torch.float32))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.record, ctx.units_at, ctx.weight_collector, ctx.bias_collector = rest
        ctx.save_for_backward(x if ctx.weight_collector is not None else None, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x = torch.matmul(grad, weight) if ctx.needs_input_grad[0] else None
        with exact_products():
            if ctx.weight_collector is not None:
                inputs, grads = (ctx.record.unitwise(t, ctx.units_at) for t in (x, grad))
                ctx.weight_collector.add(OuterProductGradient(inputs, grads))
            if ctx.bias_collector is not None:
                ctx.bias_collector.add(_bias_use(ctx.record, grad, ctx.units_at))
        return grad_x, *(None,) * 7


def linear(
    record: BackwardRecord,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    units_at: UnitDim,
    weight_collector: GradientCollector | None,
    bias_collector: GradientCollector | None,
) -> Tensor:
    """(…, d) → (…, p), units in any dimension but the last."""
    _announce(weight_collector, bias_collector)
    operands = _lowered(x, weight, bias)
    with _no_autocast(x.device.type):
        result: Tensor = _Linear.apply(
            *operands, record.anchor, record, units_at, weight_collector, bias_collector
        )
        return result


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.record, ctx.units_at, ctx.weight_collector, ctx.bias_collector, ctx.shape, eps = rest
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
            if ctx.weight_collector is not None:
                product = (
                    torch.sub(x, mean).mul_(rstd).mul_(grad)
                    if x.dtype == torch.float32
                    else ((x.float() - mean) * rstd * grad)
                )
                tokens = ctx.record.unitwise(product, ctx.units_at, last=last)
                ctx.weight_collector.add(KeptGradient(tokens.sum(dim=1)))
            if ctx.bias_collector is not None:
                tokens = ctx.record.unitwise(grad, ctx.units_at, last=last)
                ctx.bias_collector.add(KeptGradient(tokens.sum(dim=1, dtype=torch.float32)))
        return grad_x, *(None,) * 9


def layer_norm(
    record: BackwardRecord,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    units_at: UnitDim,
    weight_collector: GradientCollector | None,
    bias_collector: GradientCollector | None,
) -> Tensor:
    """(…, *shape) → the same, units in any dimension of the former."""
    _announce(weight_collector, bias_collector)
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        x = x.float()
    with _no_autocast(x.device.type):
        rest = record, units_at, weight_collector, bias_collector, tuple(shape), eps
        result: Tensor = _LayerNorm.apply(x, weight, bias, record.anchor, *rest)
        return result


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.record, ctx.weight_collector, ctx.bias_collector, ctx.groups, eps = rest
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
            if ctx.weight_collector is not None:
                centred = x.float().view(rows, groups, -1) - mean.float().view(rows, groups, 1)
                normed = centred.mul_(rstd.float().view(rows, groups, 1)).view(rows, channels, -1)
                products = normed.mul_(grads).sum(dim=2)  # (R, C)
                ctx.weight_collector.add(KeptGradient(ctx.record.unitwise(products, UnitDim(0)).sum(dim=1)))
            if ctx.bias_collector is not None:
                ctx.bias_collector.add(
                    KeptGradient(ctx.record.unitwise(grads.sum(dim=2), UnitDim(0)).sum(dim=1))
                )
        return grad_x, *(None,) * 8


def group_norm(
    record: BackwardRecord,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    weight_collector: GradientCollector | None,
    bias_collector: GradientCollector | None,
) -> Tensor:
    """(R, C, …) → the same."""
    _announce(weight_collector, bias_collector)
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        x = x.float()
    with _no_autocast(x.device.type):
        result: Tensor = _GroupNorm.apply(
            x, weight, bias, record.anchor, record, weight_collector, bias_collector, groups, eps
        )
        return result


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, anchor: Tensor, *rest: Any) -> Tensor:
        ctx.record, ctx.units_at, ctx.weight_collector = rest
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x = (grad * weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        with exact_products():
            tokens = ctx.record.unitwise(x.float() * grad, ctx.units_at, last=weight.ndim)
            ctx.weight_collector.add(KeptGradient(tokens.sum(dim=1)))
        return grad_x, *(None,) * 5


def rms_norm(
    record: BackwardRecord,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    eps: float | None,
    *,
    units_at: UnitDim,
    weight_collector: GradientCollector,
) -> Tensor:
    """(…, *shape) → the same, units in any dimension of the former."""
    _announce(weight_collector)
    normed = F.rms_norm(x, tuple(shape), None, eps)
    result: Tensor = _Scale.apply(normed, weight, record.anchor, record, units_at, weight_collector)
    return result


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, *rest: Any
    ) -> Tensor:
        ctx.record, ctx.weight_collector, ctx.bias_collector, ctx.where = rest
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
            if ctx.weight_collector is not None:
                units = ctx.record.sums.units
                ctx.weight_collector.add(
                    ConvolutionGradient(x, grad, units=units, shape=weight.shape, **where)
                )
            if ctx.bias_collector is not None:
                sums = grad.flatten(2).sum(dim=2, dtype=torch.float32)
                ctx.bias_collector.add(KeptGradient(ctx.record.unitwise(sums, UnitDim(0)).sum(dim=1)))
        return grad_x, *(None,) * 7


def conv2d(
    record: BackwardRecord,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    weight_collector: GradientCollector | None,
    bias_collector: GradientCollector | None,
) -> Tensor:
    """(R, d, h, w) → (R, p, h', w')."""
    _announce(weight_collector, bias_collector)
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
        result: Tensor = _Conv2d.apply(
            *operands, record.anchor, record, weight_collector, bias_collector, where
        )
        return result


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, anchor: Tensor, *rest: Any) -> Tensor:
        ctx.record, ctx.units_at, ctx.weight_collector, ctx.padding_idx = rest
        ctx.save_for_backward(index)
        ctx.num_embeddings = len(weight)
        return F.embedding(index, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        with exact_products():
            grads = ctx.record.unitwise(grad, ctx.units_at)
            indices = ctx.record.unitwise(index, ctx.units_at, last=0)
            if ctx.padding_idx is not None:
                grads = grads.masked_fill((indices == ctx.padding_idx)[:, :, None], 0)
            ctx.weight_collector.add(EmbeddingGradient(indices, grads, num_embeddings=ctx.num_embeddings))
        return (None,) * 7


def embedding(
    record: BackwardRecord,
    index: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    *,
    units_at: UnitDim,
    weight_collector: GradientCollector,
) -> Tensor:
    """(…) int → (…, D), units in any dimension of the former."""
    _announce(weight_collector)
    result: Tensor = _Embedding.apply(
        index, weight, record.anchor, record, units_at, weight_collector, padding_idx
    )
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


def tap(record: BackwardRecord, value: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
    """`value` itself; `callback` gets the loss's gradient with respect to it."""
    result: Tensor = _Tap.apply(value, record.anchor, callback)
    return result
