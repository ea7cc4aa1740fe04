"""Which operators on tracked weights have a rule of their own, and nn.MultiheadAttention's.

A rule applies when the input has units where the layer's gradients can do with them and only weights are
tracked; else it returns NotImplemented and `tracked_parameter.py` takes the operator in the general way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dp.privacy.clipping._book_keeping import layer_ops
from lightning_dp.privacy.clipping._book_keeping.backward_record import BackwardRecord, GradientCollector
from lightning_dp.privacy.clipping._book_keeping.tracked_parameter import (
    COMPOSITES,
    RULES,
    Rule,
    TrackedParameter,
    spread,
)
from lightning_dp.privacy.clipping.per_unit import Look
from lightning_dp.privacy.rows import UnitDim


def _rule(function: Callable[..., Any]) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES[function] = rule
        return rule

    return register


def _composite(function: Callable[..., Any]) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        COMPOSITES[function] = rule
        return rule

    return register


def _split(weight: Tensor | None) -> tuple[Tensor | None, GradientCollector | None]:
    """A weight's value and, where it is trainable, its sink."""
    if isinstance(weight, TrackedParameter):
        return weight.plain(), weight.collector()
    return weight, None


def _units_at(look: Look, x: Any, *weights: Tensor | None, last: int = 1) -> UnitDim | None:
    """Where the input has units, if a rule for weights along its `last` dimensions applies; else None."""
    if not isinstance(x, Tensor) or isinstance(x, TrackedParameter):
        return None
    place = look(x)
    # A weight that neither is tracked nor frozen would lose its gradient here.
    stray = any(w is not None and not isinstance(w, TrackedParameter) and w.requires_grad for w in weights)
    return None if place is None or stray or place.dim >= x.ndim - last else place


def _first(place: UnitDim | None) -> bool:
    """Whether units are the first dimension, as rules for images need them."""
    return place == UnitDim(0)


@_rule(F.linear)
def _linear(
    record: BackwardRecord, look: Look, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    place = _units_at(look, input, weight, bias)
    if place is None:
        return NotImplemented
    (w, weight_collector), (b, bias_collector) = _split(weight), _split(bias)
    assert w is not None
    return layer_ops.linear(
        record, input, w, b, units_at=place, weight_collector=weight_collector, bias_collector=bias_collector
    )


@_rule(F.layer_norm)
def _layer_norm(
    record: BackwardRecord,
    look: Look,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    place = _units_at(look, input, weight, bias, last=len(normalized_shape))
    if place is None:
        return NotImplemented
    (w, weight_collector), (b, bias_collector) = _split(weight), _split(bias)
    return layer_ops.layer_norm(
        record,
        input,
        normalized_shape,
        w,
        b,
        eps,
        units_at=place,
        weight_collector=weight_collector,
        bias_collector=bias_collector,
    )


@_rule(F.group_norm)
def _group_norm(
    record: BackwardRecord,
    look: Look,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if not _first(_units_at(look, input, weight, bias)):
        return NotImplemented
    (w, weight_collector), (b, bias_collector) = _split(weight), _split(bias)
    return layer_ops.group_norm(
        record, input, num_groups, w, b, eps, weight_collector=weight_collector, bias_collector=bias_collector
    )


@_rule(F.rms_norm)
def _rms_norm(
    record: BackwardRecord,
    look: Look,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    place = _units_at(look, input, weight, last=len(normalized_shape))
    if place is None:
        return NotImplemented
    w, collector = _split(weight)
    assert w is not None
    assert collector is not None
    return layer_ops.rms_norm(
        record, input, normalized_shape, w, eps, units_at=place, weight_collector=collector
    )


def _both(value: int | Sequence[int]) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


@_rule(F.conv2d)
def _conv2d(
    record: BackwardRecord,
    look: Look,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not _first(_units_at(look, input, weight, bias)) or input.ndim != 4:
        return NotImplemented
    (w, weight_collector), (b, bias_collector) = _split(weight), _split(bias)
    assert w is not None
    return layer_ops.conv2d(
        record,
        input,
        w,
        b,
        stride=_both(stride),
        padding=padding if isinstance(padding, str) else _both(padding),
        dilation=_both(dilation),
        groups=groups,
        weight_collector=weight_collector,
        bias_collector=bias_collector,
    )


@_composite(F.conv1d)
def _conv1d(
    record: BackwardRecord,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A two-dimensional convolution of height 1; tracked weights follow the reshaping by themselves."""
    if isinstance(input, TrackedParameter) or input.ndim != 3:
        return NotImplemented
    if not isinstance(padding, str):
        padding = (0, _both(padding)[1])
    with torch._C._EnableTorchFunction():
        flat = (1, _both(stride)[1]), padding, (1, _both(dilation)[1]), groups
        return F.conv2d(input.unsqueeze(2), weight.unsqueeze(2), bias, *flat).squeeze(2)


@_rule(F.embedding)
def _embedding(
    record: BackwardRecord,
    look: Look,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if isinstance(weight, TrackedParameter) and (max_norm is not None or scale_grad_by_freq):
        raise RuntimeError(
            f"Embedding of {', '.join(weight.roots)} has max_norm or scale_grad_by_freq, which make its "
            "gradient depend on other rows: unset them."
        )
    place = _units_at(look, input, weight, last=0)
    if place is None:
        return NotImplemented
    w, collector = _split(weight)
    assert w is not None
    assert collector is not None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(w)
    return layer_ops.embedding(record, input, w, padding_idx, units_at=place, weight_collector=collector)


@_rule(F.scaled_dot_product_attention)
def _dot_product_attention(
    record: BackwardRecord,
    look: Look,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **more: Any,
) -> Any:
    """A mask made of parameters (relative positions) is broadcast to the units of the queries."""
    if not isinstance(attn_mask, TrackedParameter) or any(
        isinstance(t, TrackedParameter) for t in (query, key, value)
    ):
        return NotImplemented
    give_units = spread(record, (query, attn_mask), look=look)
    if give_units is None:
        return NotImplemented
    return F.scaled_dot_product_attention(query, key, value, give_units(attn_mask), **more)


@_composite(F.multi_head_attention_forward)
def _attention(
    record: BackwardRecord,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Vaswani et al. 2017 with the projections as ordinary linear layers; inputs are (T, B, E)."""
    unusual = [t for t in (bias_k, bias_v, static_k, static_v) if t is not None]
    if unusual or add_zero_attn or query.ndim != 3:
        raise RuntimeError(
            "nn.MultiheadAttention with add_bias_kv, add_zero_attn, static keys or unbatched inputs has no "
            "per-row rule: use F.scaled_dot_product_attention, or freeze it (requires_grad=False)."
        )
    with torch._C._EnableTorchFunction():
        if use_separate_proj_weight:
            assert q_proj_weight is not None
            assert k_proj_weight is not None
            assert v_proj_weight is not None
            weights = [q_proj_weight, k_proj_weight, v_proj_weight]
        else:
            assert in_proj_weight is not None
            weights = list(in_proj_weight.chunk(3))
        biases = [None] * 3 if in_proj_bias is None else list(in_proj_bias.chunk(3))
        q_in, k_in, v_in = (t.transpose(0, 1) for t in (query, key, value))  # (B, T, E)
        if query is key and key is value and not use_separate_proj_weight:
            q, k, v = F.linear(q_in, in_proj_weight, in_proj_bias).chunk(3, dim=-1)  # type: ignore[arg-type]
        else:
            given = zip((q_in, k_in, v_in), weights, biases, strict=True)
            q, k, v = (F.linear(x, w, b) for x, w, b in given)
        heads = [t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v)]  # (B, H, T, E/H)
        mask = _mask(attn_mask, key_padding_mask, heads)
        weighted, shown = _attend(heads, mask, dropout_p if training else 0.0, need_weights)
        out = F.linear(weighted.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias).transpose(0, 1)
    if shown is not None and average_attn_weights:
        shown = shown.mean(dim=1)
    return out, shown


def _mask(mask: Tensor | None, padding: Tensor | None, heads: list[Tensor]) -> Tensor | None:
    """One additive mask, (B, H, L, S) or broadcastable to it."""
    dtype = heads[0].dtype

    def additive(given: Tensor) -> Tensor:
        if given.dtype != torch.bool:
            return given.to(dtype)
        return torch.zeros_like(given, dtype=dtype).masked_fill_(given, float("-inf"))

    found = None
    if mask is not None:
        found = additive(mask)
        if found.ndim == 3:
            found = found.view(heads[0].shape[0], heads[0].shape[1], *found.shape[1:])
    if padding is not None:
        columns = additive(padding)[:, None, None, :]
        found = columns if found is None else found + columns
    return found


def _attend(
    heads: list[Tensor], mask: Tensor | None, dropout: float, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    q, k, v = heads
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    dropped = F.dropout(weights, dropout) if dropout else weights
    return dropped @ v, dropped
