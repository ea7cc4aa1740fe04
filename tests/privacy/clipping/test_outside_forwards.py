"""Parameters that a step uses itself, outside of every forward, as people write in `training_step`."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from engines import Result, distance
from follow_steps import sites_of
from torch import Tensor, nn

from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.rows import UnitsMixed

UNITS, CLIP = 6, 0.3


class Bare(nn.Module):
    """Parts of a step; its forward is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 8)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.position = nn.Parameter(torch.randn(8))
        self.log_variance = nn.Parameter(torch.tensor(0.3))
        self.many = nn.ParameterList([torch.randn(8), torch.randn(8)])
        self.table = nn.Embedding(5, 8)


STEPS: dict[str, Callable[[Bare, Tensor], Tensor]] = {
    "scale and position": lambda m, h: h * m.scale + m.position,
    "matrix product": lambda m, h: h @ m.scale[:, None],
    "number twice": lambda m, h: h * torch.exp(-m.log_variance) + m.log_variance,
    "list": lambda m, h: h + m.many[0] * m.many[1].sigmoid(),
    "tied table": lambda m, h: h @ m.table.weight.T + m.table(torch.arange(5)).mean(),
    "norm": lambda m, h: F.layer_norm(h, (8,), m.scale, m.position),
    "normalised": lambda m, h: h @ F.normalize(m.scale, dim=0)[:, None],
    "joined": lambda m, h: torch.cat([m.position.expand(len(h), 1, 8), h[:, None]], dim=1),
    "a child's weight": lambda m, h: h + F.linear(h[:, :4], m.net.weight),
    "shown": lambda m, h: h * m.scale / float(m.scale.detach().norm()),
}


def _losses(model: Bare, x: Tensor, use: Callable[[Bare, Tensor], Tensor]) -> Tensor:
    return use(model, model.net(x)).square().flatten(1).mean(dim=1)


def _alone(model: Bare, x: Tensor, use: Callable[[Bare, Tensor], Tensor]) -> Result:
    """One autograd backward per unit."""
    named, norms = dict(model.named_parameters()), []
    sums = {name: torch.zeros_like(p) for name, p in named.items()}
    for row in x.split(1):
        found = torch.autograd.grad(_losses(model, row, use).mean(), named.values(), allow_unused=True)
        norm = sum(float(g.double().square().sum()) for g in found if g is not None) ** 0.5
        norms.append(norm)
        for total, gradient in zip(sums.values(), found, strict=True):
            if gradient is not None:
                total += gradient * min(1.0, CLIP / norm)
    return torch.tensor(norms), sums


def _clipped(engine: ClippingEngine, model: nn.Module, loss: Callable[[], Tensor]) -> Result:
    engine.know(sites_of(model, loss, units=UNITS))
    engine.attach(model, function=Flat(), max_grad_norm=CLIP)
    try:
        engine.expect(unit_weights=torch.ones(UNITS), rows_per_unit=1)
        with engine.stepping():
            mean = loss().mean()
        mean.backward()
        return engine.collect(), engine.take()
    finally:
        engine.detach()


@pytest.mark.parametrize("name", STEPS)
def test_it_is_clipped_as_if_it_stood_in_a_forward(name):
    torch.manual_seed(0)
    model, x, use = Bare(), torch.randn(UNITS, 4), STEPS[name]
    before = dict(model.named_parameters())
    found = _clipped(BookKeeping(), model, lambda: _losses(model, x, use))
    assert distance(found, _alone(model, x, use)) <= 1e-5
    assert all(p is before[name] for name, p in model.named_parameters())


@pytest.mark.parametrize("engine", [Loop, Materialised])
def test_engines_that_see_forwards_alone_refuse_it(engine):
    model, x = Bare(), torch.randn(UNITS, 4)
    with pytest.raises(RuntimeError, match="saw no per-row use of scale, position"):
        _clipped(engine(), model, lambda: _losses(model, x, STEPS["scale and position"]))


def test_a_parameter_that_was_kept_elsewhere_is_refused():
    model, x = Bare(), torch.randn(UNITS, 4)
    kept = [model.scale]

    def loss() -> Tensor:
        return (model.net(x) * kept[0]).square().mean(dim=1)

    engine = BookKeeping()
    engine.know(sites_of(model, lambda: model.net(x).square().mean(dim=1), units=UNITS))
    engine.attach(model, function=Flat(), max_grad_norm=CLIP)
    engine.expect(unit_weights=torch.ones(UNITS), rows_per_unit=1)
    with engine.stepping():
        mean = loss().mean()
    mean.backward()
    with pytest.raises(RuntimeError, match="saw no per-row use of scale"):
        engine.collect()


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, rows: rows.mean() * torch.exp(-m.log_variance) + m.log_variance,
        lambda m, rows: rows.mean() + m.scale.square().sum(),
        lambda m, rows: rows / (rows.detach() * m.scale[0]).sum(),
    ],
    ids=["weight of a mean", "penalty on a mean", "units in a denominator"],
)
def test_it_never_meets_a_sum_over_units(loss):
    model, x = Bare(), torch.randn(UNITS, 4)
    with pytest.raises((UnitsMixed, RuntimeError), match=r"together with a mean over units|units are mixed"):
        sites_of(model, lambda: loss(model, model.net(x).square().mean(dim=1)), units=UNITS)
