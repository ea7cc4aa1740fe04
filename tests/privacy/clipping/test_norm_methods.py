"""Every way to a norm, at sizes and in mixtures where its chunks, strips and sums begin to matter."""

import pytest
import torch
from engines import compare, run, total_norm
from torch import Tensor, nn

from lightning_dp.privacy.clipping._book_keeping import convolutions, per_unit_gradient, untrusted
from lightning_dp.privacy.clipping.book_keeping import BookKeeping

TOLERANCE = 1e-5
OUTER = pytest.mark.parametrize("method", ["ghost", "direct", "keep"])


def _loss(out: Tensor) -> Tensor:
    return (out.flatten(1) * torch.linspace(-1, 1.5, out[0].numel())).tanh().sum(dim=1)


def _force(monkeypatch, method: str) -> None:
    monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "method", lambda self: method)
    monkeypatch.setattr(convolutions.ConvolutionGradient, "method", lambda self: method)


@OUTER
@pytest.mark.parametrize("tokens", [63, 64, 66, 130])
def test_many_tokens(method, tokens, monkeypatch):
    _force(monkeypatch, method)
    layer, x = nn.Linear(5, 4), torch.randn(3, tokens, 5)
    assert compare(BookKeeping(), layer, lambda: _loss(layer(x)), units=3) <= TOLERANCE


@OUTER
@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_small_chunks(method, shape, monkeypatch):
    _force(monkeypatch, method)
    monkeypatch.setattr(per_unit_gradient, "_CHUNK_BYTES", 2 * 4 * 20)
    monkeypatch.setattr(per_unit_gradient, "_KEPT_BYTES", 2 * 4 * 20)
    layer, x = nn.Linear(*shape), torch.randn(7, 6, shape[0])
    assert compare(BookKeeping(), layer, lambda: _loss(layer(x)), units=7) <= TOLERANCE


@OUTER
def test_double_precision(method, monkeypatch):
    _force(monkeypatch, method)
    layers = nn.Conv1d(4, 4, 3, padding=1), nn.LayerNorm(4), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)
    model, x = nn.Sequential(*layers).double(), torch.randn(4, 4, 4).double()
    assert compare(BookKeeping(), model, lambda: _loss(model(x).float()), units=4) <= TOLERANCE


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 3), nn.Linear(3, 6)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.embedding(index).tanh())


@pytest.mark.parametrize("chunk", [1, per_unit_gradient._CHUNK_BYTES])
def test_mixed_uses_of_one_weight(chunk, monkeypatch):
    monkeypatch.setattr(per_unit_gradient, "_CHUNK_BYTES", chunk)
    model, index = _Tied(), torch.randint(0, 6, (8, 5))
    config = {"units": 4, "rows_per_unit": 2}
    assert compare(BookKeeping(), model, lambda: _loss(model(index)), **config) <= TOLERANCE


class _Repeated(nn.Module):
    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x).tanh()
        return x


@pytest.mark.parametrize("times", range(1, 7))
@pytest.mark.parametrize("kind", ["linear", "norm", "convolution"])
def test_a_layer_called_several_times(kind, times):
    layer = {"linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "convolution": nn.Conv1d(4, 4, 3, padding=1)}
    model, x = _Repeated(layer[kind], times), torch.randn(3, 4, 4)
    assert compare(BookKeeping(), model, lambda: _loss(model(x)), units=3) <= TOLERANCE


@pytest.mark.parametrize("method", ["ghost", "direct", "keep"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)},
        {"kernel_size": (2, 3), "stride": (1, 2), "dilation": (2, 1), "groups": 2},
        {"kernel_size": 1, "stride": 2, "groups": 4},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": (5, 6)},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows_per_unit", [1, 2])
def test_convolutions(method, options, rows_per_unit, monkeypatch):
    _force(monkeypatch, method)
    layer = nn.Conv2d(4, 8, **options)
    x = torch.randn(10 * rows_per_unit, 4, 5, 6)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = compare(
            BookKeeping(),
            layer,
            lambda memory_format=memory_format: _loss(layer(x.contiguous(memory_format=memory_format))),
            units=10,
            rows_per_unit=rows_per_unit,
        )
        assert found <= TOLERANCE


@pytest.mark.parametrize("method", ["ghost", "direct", "keep"])
def test_small_chunks_of_convolutions(method, monkeypatch):
    _force(monkeypatch, method)
    monkeypatch.setattr(convolutions, "_GRAM_BYTES", 1)
    monkeypatch.setattr(convolutions, "_TOGETHER", (2, 1 << 16))
    layer, x = nn.Conv2d(2, 3, 3, padding=1, groups=1), torch.randn(5, 2, 4, 4)
    assert compare(BookKeeping(), layer, lambda: _loss(layer(x)), units=5) <= TOLERANCE
    monkeypatch.setattr(convolutions, "_TOGETHER", (2, 1))
    assert compare(BookKeeping(), layer, lambda: _loss(layer(x)), units=5) <= TOLERANCE


# --- tokens that cancel exactly -------------------------------------------------------------------------


class _Cancelling(nn.Module):
    """Token t of the first half and of the second have the same input; the loss weighs them by ± head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear, self.embedding = nn.Linear(8, 8, bias=False), nn.Embedding(8, 8)
        if kind == "tied":
            self.linear.weight = self.embedding.weight
        self.map = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        looked_up = self.embedding(INDEX.expand(len(x), -1))
        if self.kind == "lookup":
            return torch.cat([looked_up, looked_up], dim=1)
        if self.kind == "convolution":
            return self.map(torch.cat([x, x], dim=1).transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
        if self.kind == "tied":
            return torch.cat([looked_up, self.linear(x)], dim=1)
        return self.linear(torch.cat([x, x], dim=1))


INDEX = torch.arange(8).remainder(3)
CANCELLING = [
    *(("linear", method) for method in ("ghost", "direct", "keep")),
    *(("convolution", method) for method in ("ghost", "direct", "keep")),
    ("lookup", "direct"),
    ("tied", "direct"),
]


def _largest(kind: str, *, rest: float) -> float:
    """Of three units the largest contribution, in units of the bound."""
    torch.manual_seed(0)
    model, x, head = _Cancelling(kind), torch.randn(3, 8, 8), torch.randn(3, 8, 8) * 1e8
    rests = rest * torch.randn_like(head) - head
    weights = torch.cat([head, rests], dim=1)
    if kind == "tied":  # the linear map's gradient is -1 ⊗ x in the row that was looked up
        x = -rests
        weights[:, 8:] = -nn.functional.one_hot(INDEX, 8).float()
    found = []
    for unit in range(3):
        _, sums = run(
            BookKeeping(),
            model,
            lambda: (model(x) * weights).flatten(1).sum(dim=1),
            units=3,
            max_grad_norm=1.0,
            weights=torch.eye(3)[unit],
        )
        found.append(total_norm(sums))
    return max(found)


@pytest.mark.parametrize(("kind", "method"), CANCELLING)
@pytest.mark.parametrize("rest", [0.0, 1.0, 100.0, 1e6])
def test_tokens_that_cancel_add_no_more_than_the_bound(kind, method, rest, monkeypatch):
    """What fp32 leaves of 1e8 − 1e8 is no gradient, and a norm of 0 clips nothing."""
    _force(monkeypatch, method)
    assert _largest(kind, rest=rest) <= 1 + TOLERANCE


@pytest.mark.parametrize(("kind", "method"), [("linear", "ghost"), ("convolution", "ghost")])
def test_planted_trust_in_what_cancelled_exceeds_the_bound(kind, method, monkeypatch):
    _force(monkeypatch, method)
    monkeypatch.setattr(untrusted, "_untrusted", lambda uses, squares, sums: torch.zeros(3, 1).bool())
    assert _largest(kind, rest=0.0) > 2
