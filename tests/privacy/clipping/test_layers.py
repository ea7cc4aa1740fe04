"""Every engine against the oracle, layer by layer, over drawn shapes."""

import pytest
import torch
import torch.nn.functional as F
from engines import compare
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from torch import Tensor, nn

from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.materialised import Materialised

TOLERANCE = 1e-5
ENGINES = pytest.mark.parametrize("engine", [BookKeeping, Materialised])
drawn = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
small = st.integers(1, 4)


def _loss(out: Tensor) -> Tensor:
    return (out.flatten(1) * torch.linspace(-1, 1.5, out[0].numel())).tanh().sum(dim=1)


def _check(engine, layer: nn.Module, x: Tensor, *, units: int, k: int = 1) -> None:
    found = compare(engine(), layer, lambda: _loss(layer(x)), units=units, rows_per_unit=k)
    assert found <= TOLERANCE


@ENGINES
@drawn
@given(units=small, k=small, dims=st.lists(small, max_size=3), p=st.integers(1, 7), d=st.integers(1, 7))
@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_any_rank(engine, units, k, dims, p, d, bias):
    _check(engine, nn.Linear(d, p, bias=bias), torch.randn(units * k, *dims, d), units=units, k=k)


@ENGINES
@drawn
@given(
    units=small,
    k=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    size=st.integers(4, 6),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    dilation=st.integers(1, 2),
)
@pytest.mark.parametrize("rank", [1, 2])
def test_convolution(engine, rank, units, k, groups, size, kernel, stride, padding, dilation):
    if padding == "same":
        stride = 1
    assume(padding == "same" or size + 2 * padding > dilation * (kernel - 1))
    kind = (nn.Conv1d, nn.Conv2d)[rank - 1]
    layer = kind(2, 4, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    _check(engine, layer, torch.randn(units * k, 2, *(size,) * rank), units=units, k=k)


@ENGINES
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolution_with_padding_mode(mode, engine):
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    _check(engine, layer, torch.randn(3, 2, 5, 5), units=3)


@ENGINES
@drawn
@given(units=small, k=st.integers(1, 2), dims=st.lists(small, max_size=2), width=st.integers(2, 6))
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_layer_norms(engine, kind, units, k, dims, width):
    layer = kind(width)
    nn.init.normal_(layer.weight)
    _check(engine, layer, torch.randn(units * k, *dims, width), units=units, k=k)


@ENGINES
@drawn
@given(units=small, k=st.integers(1, 2), groups=st.sampled_from([1, 2, 4]), dims=st.lists(small, max_size=2))
def test_group_norm(engine, units, k, groups, dims):
    layer = nn.GroupNorm(groups, 8)
    nn.init.normal_(layer.weight)
    _check(engine, layer, torch.randn(units * k, 8, *dims), units=units, k=k)


@ENGINES
@drawn
@given(units=small, k=st.integers(1, 2), tokens=st.integers(2, 6), padding_idx=st.sampled_from([None, 0, -1]))
def test_embedding(engine, units, k, tokens, padding_idx):
    layer = nn.Embedding(4, 3, padding_idx=padding_idx)
    index = torch.randint(0, 4, (units * k, tokens))
    _check(engine, layer, index, units=units, k=k)


@ENGINES
@drawn
@given(
    units=small,
    k=st.integers(1, 2),
    queries=small,
    keys=st.integers(2, 4),
    heads=st.sampled_from([1, 2]),
    batch_first=st.booleans(),
    need_weights=st.booleans(),
    masked=st.booleans(),
    other_width=st.booleans(),
)
def test_multihead_attention(
    engine, units, k, queries, keys, heads, batch_first, need_weights, masked, other_width
):
    rows, width = units * k, 3 if other_width else 4

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"kdim": width, "vdim": width} if other_width else {}
            self.attention = nn.MultiheadAttention(4, heads, batch_first=batch_first, **sizes)
            nn.init.normal_(self.attention.in_proj_bias)

        def forward(self, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
            if not batch_first:
                q, kv = q.transpose(0, 1), kv.transpose(0, 1)
            out = self.attention(q, kv, kv, key_padding_mask=mask, need_weights=need_weights)[0]
            return out if batch_first else out.transpose(0, 1)

    layer = Block()
    q, kv = torch.randn(rows, queries, 4), torch.randn(rows, keys, width)
    mask = torch.zeros(rows, keys, dtype=torch.bool)
    mask[:, 1:] = masked
    found = compare(engine(), layer, lambda: _loss(layer(q, kv, mask)), units=units, rows_per_unit=k)
    assert found <= TOLERANCE


class _Handmade(nn.Module):
    """Bare parameters in the ways people use them."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 4))
        self.flat_position = nn.Parameter(torch.randn(5, 4))
        self.token = nn.Parameter(torch.randn(4))
        self.gain = nn.Parameter(torch.randn(4))
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.extra = nn.ParameterList([nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(1))])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position[:, : x.shape[1]] * self.gain
        x = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1)
        x = x - self.flat_position.mean(dim=0)
        x = F.linear(x, self.weight / self.weight.norm()) * (1 + self.gain)
        x = torch.einsum("btd,de->bte", x, self.extra[0])
        return x.sin() * self.extra[1] + self.gain.repeat(len(x), 1)[:, None, :2]


@drawn
@given(units=st.integers(1, 4), k=st.integers(1, 2))
def test_bare_parameters_used_by_hand(units, k):
    _check(BookKeeping, _Handmade(), torch.randn(units * k, 5, 4), units=units, k=k)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv3d(2, 3, 2), (4, 2, 3, 3, 3)),
        (nn.ConvTranspose2d(2, 3, 2), (4, 2, 3, 3)),
        (nn.ConvTranspose1d(2, 3, 2), (4, 2, 3)),
        (nn.PReLU(3), (4, 3, 2)),
        (nn.InstanceNorm2d(3, affine=True), (4, 3, 2, 2)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (4, 2, 3)),
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True), (4, 3, 4)),
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval(), (4, 3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_without_a_rule(layer, shape):
    x = torch.randn(*shape)
    assert compare(BookKeeping(), layer, lambda: _loss(layer(x)), units=shape[0]) <= TOLERANCE


def test_bilinear_takes_two_row_tensors():
    layer, a, b = nn.Bilinear(2, 3, 4), torch.randn(4, 2), torch.randn(4, 3)
    assert compare(BookKeeping(), layer, lambda: _loss(layer(a, b)), units=4) <= TOLERANCE
