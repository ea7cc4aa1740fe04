"""Norms and contributions against fp64, for inputs and gradients of any magnitude that fp32 can hold."""

import pytest
import torch
from engines import run
from hypothesis import HealthCheck, example, given, settings, strategies as st
from torch import Tensor, nn

from lightning_dp.privacy.clipping._book_keeping import per_unit_gradient, untrusted
from lightning_dp.privacy.clipping._book_keeping.convolutions import ConvolutionGradient
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised

UNITS, TOKENS, WIDTH = 3, 4, 6
drawn = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
powers = st.lists(st.floats(-38, 38), min_size=TOKENS, max_size=TOKENS)


class _Tied(nn.Module):
    """An embedding and a linear map that share a weight, beside a second linear use of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, WIDTH), nn.Linear(WIDTH, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(TOKENS).remainder(3).expand(len(x), TOKENS)
        return torch.cat([self.embedding(index), self.head(x)], dim=2)


def _embedded(layer: nn.Embedding) -> nn.Module:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.arange(TOKENS).remainder(3).expand(len(x), TOKENS))

    return Lookup()


class _Maps(nn.Module):
    """Tokens as the pixels of a map."""

    def __init__(self, **options: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(WIDTH, WIDTH, **options, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2).unflatten(2, (2, -1))).flatten(2).transpose(1, 2)


WAYS = {
    "outer": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "ghost": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "direct": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "keep": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "bias": lambda: nn.Linear(WIDTH, WIDTH),
    "lookup": lambda: _embedded(nn.Embedding(5, WIDTH)),
    "ghost of maps": lambda: _Maps(kernel_size=3, padding=1),
    "direct of maps": lambda: _Maps(kernel_size=3, padding=1),
    "keep of maps": lambda: _Maps(kernel_size=3, padding=1),
    "ghost of groups": lambda: _Maps(kernel_size=1, groups=2),
    "sum": lambda: _Tied(),
    "once and again": lambda: _Twice(),
}


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x), self.layer(-x[:, :2])], dim=1)


def _exactly(model: nn.Module, x: Tensor, head: Tensor) -> Tensor:
    """The unit's whole gradient by autograd in fp64."""
    model = model.double()
    try:
        (model(x.double()[None]) * head.double()).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    finally:
        model.float().zero_grad()


class _ToTheBound(ClippingFunction):
    """g · C / ‖g‖: every unit contributes C, however small its gradient."""

    def partition(self, names):
        return [0] * len(names)

    def factors(self, norms, *, max_grad_norm):
        return torch.where(norms > 0, max_grad_norm / norms, 0.0).clamp(max=3e38)


def _check(
    model: nn.Module, x: Tensor, head: Tensor, *, engine=BookKeeping, function=None, rtol: float = 1e-5
) -> None:
    """Unit 1 alone counts; its norm and its contribution are those of its fp64 gradient."""
    bound = 1e-3
    norms, sums = run(
        engine(),
        model,
        lambda: (model(x) * head).flatten(1).sum(dim=1),
        units=UNITS,
        max_grad_norm=bound,
        weights=torch.tensor([0.0, 1.0, 0.0]),
        loss_scale=UNITS,
        function=function or Flat(),
    )
    exact = _exactly(model, x[1], head[1])
    size = float(exact.norm())
    found = torch.cat([sums[n].double().flatten() for n, _ in model.named_parameters()])
    assert float(found.norm()) <= bound * (1 + 1e-5)
    if not norms[1].isfinite():
        assert found.eq(0).all()
        assert not size < 1e37
    elif size > 1e-35:
        assert abs(float(norms[1]) / size - 1) <= rtol
        if function is None:
            torch.testing.assert_close(found, exact * min(1.0, bound / size), rtol=0, atol=1e-5 * bound)


def _drawn(inputs: list[float], grads: list[float], tokens: int, outputs: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(UNITS, tokens, WIDTH, generator=generator)
    head = torch.randn(UNITS, *outputs, generator=generator)
    scales = [10.0 ** torch.tensor(p, dtype=torch.float64) for p in (inputs, grads)]
    rows = torch.arange(outputs[0]) % TOKENS
    x[1] = (x[1].double() * scales[0][:tokens, None]).float()
    head[1] = (head[1].double() * scales[1][rows, None]).float()
    return [x, head]


@pytest.mark.parametrize("method", WAYS)
@drawn
@given(inputs=powers, grads=powers, same=st.booleans())
@example(inputs=[18.0] * TOKENS, grads=[-30.0] * TOKENS, same=True)
@example(inputs=[0.0] * TOKENS, grads=[-24.0] * TOKENS, same=True)
@example(inputs=[38.0] * TOKENS, grads=[0.0] * TOKENS, same=True)
def test_every_way_to_a_norm_at_every_magnitude(method, inputs, grads, same, monkeypatch):
    forced = method.split()[0]
    if forced in ("outer", "ghost", "direct", "keep"):
        monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "method", lambda self: forced)
        monkeypatch.setattr(ConvolutionGradient, "method", lambda self: forced)
    torch.manual_seed(0)
    model = WAYS[method]()
    tokens = 1 if method in ("outer", "bias") else TOKENS
    if same:  # else a single token decides
        inputs, grads = inputs[:1] * TOKENS, grads[:1] * TOKENS
    outputs = model(torch.zeros(UNITS, tokens, WIDTH)).shape[1:]
    x, head = _drawn(inputs, grads, tokens, tuple(outputs))
    _check(model, x, head)
    _check(model, x, head, function=_ToTheBound())


@pytest.mark.parametrize("engine", [Materialised, Loop])
@drawn
@given(inputs=powers, grads=powers)
@example(inputs=[18.0] * TOKENS, grads=[-30.0] * TOKENS)
def test_other_engines_at_every_magnitude(engine, inputs, grads):
    x, head = _drawn(inputs, grads, TOKENS, (TOKENS, WIDTH))
    torch.manual_seed(0)
    # Their gradients are fp32 sums: what one token cancels of another is lost to them.
    _check(nn.Linear(WIDTH, WIDTH), x, head, engine=engine, rtol=1e-4)


def test_planted_squares_in_fp32_are_caught(monkeypatch):
    """As the norms were once measured: a unit of ordinary norm had 0 and passed unclipped."""

    def in_fp32(tensor: Tensor) -> Tensor:
        return tensor.flatten(1).square().sum(dim=1).double()

    x, head = _drawn([14.0] * TOKENS, [-24.0] * TOKENS, 1, (1, WIDTH))
    _check(nn.Linear(WIDTH, WIDTH, bias=False), x, head)
    monkeypatch.setattr(per_unit_gradient, "_row_squares", in_fp32)
    with pytest.raises(AssertionError):
        _check(nn.Linear(WIDTH, WIDTH, bias=False), x, head)


@pytest.mark.parametrize("method", ["ghost", "direct"])
def test_planted_trust_in_fp32_is_caught(method, monkeypatch):
    monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "method", lambda self: method)
    x, head = _drawn([0.0] * TOKENS, [-24.0] * TOKENS, TOKENS, (TOKENS, WIDTH))
    _check(nn.Linear(WIDTH, WIDTH, bias=False), x, head)
    monkeypatch.setattr(untrusted, "_untrusted", lambda uses, squares, sums: torch.zeros(UNITS, 1).bool())
    with pytest.raises((AssertionError, RuntimeError)):
        _check(nn.Linear(WIDTH, WIDTH, bias=False), x, head)
