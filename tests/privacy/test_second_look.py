"""Cutting real batches, handing out draws again, and what counts as a disagreement."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.spot_check import (
    CouldNotRun,
    HandedOut,
    NotCut,
    Recording,
    Rerun,
    SecondLook,
    Tolerance,
    cut,
    same_values,
)

U = 5


@dataclasses.dataclass
class Pair:
    x: Tensor
    name: str = "made"


def batch(units, *, seed: int = 0):
    """Everything that a batch may hold; unit u is full of u."""
    n = len(units)
    owner = torch.tensor(units)
    return {
        "rows": owner.repeat_interleave(2).float(),
        "columns": [owner, owner[:, None].expand(n, 3).numpy()],
        "pair": Pair(owner.double()),
        "names": [str(unit) for unit in units],
        "images": [torch.full((3 + unit, 5), unit) for unit in units],
        "table": torch.arange(U),
        "count": torch.tensor(n),
        "split": ("train", 3),
    }


@pytest.mark.parametrize("units", [[3], [4, 0]])
def test_units_of_a_real_batch(units):
    whole = batch(list(range(U)))
    found = cut(whole, units, num_units=U, example=batch([2]))
    expected = {**batch(units), "count": torch.tensor(U)}
    assert same_values(found, expected)
    found["rows"].zero_()
    assert same_values(whole, batch(list(range(U)))), "in memory of its own"


@pytest.mark.parametrize(
    ("whole", "example"),
    [
        ({"nodes": torch.zeros(U + 2, 3)}, {"nodes": torch.zeros(2, 3)}),
        ({"x": torch.zeros(U)}, {"y": torch.zeros(1)}),
        ({"x": torch.zeros(U)}, [torch.zeros(1)]),
        ({"graph": object()}, {"graph": object()}),
    ],
)
def test_what_nobody_can_cut_is_refused(whole, example):
    with pytest.raises(NotCut):
        cut(whole, [1], num_units=U, example=example)


def fused(x: Tensor) -> Tensor:
    return torch.native_dropout(x, 0.4, True)[0]


def drawn_again(module, x, units, *, rows=frozenset({1})):
    """What the module gives to some of the rows alone, and what it gave to them in the batch."""
    recording = Recording()
    with recording:
        whole = module(x)
    handed = HandedOut(recording, units, num_units=len(x), rows=rows)
    with handed.at_work(torch.device("cpu")):
        alone = module(x[units])
    return alone, whole[units], handed


@pytest.mark.parametrize("units", [[2], [3, 1], list(range(U))])
@pytest.mark.parametrize(
    "function",
    [
        nn.Dropout(0.5),
        nn.AlphaDropout(0.3),
        fused,
        lambda x: x + torch.randn(len(x), 1) * torch.randint_like(x, 5),
        lambda x: (
            x * torch.bernoulli(torch.full_like(x, 0.5)) + torch.empty(len(x), 2).uniform_(-1, 1)[:, :1]
        ),
        lambda x: x + torch.multinomial(x.abs() + 1, 2).sum(dim=1, keepdim=True),
    ],
)
def test_units_get_their_own_draws_again(function, units):
    x = torch.randn(U, 4)
    alone, own, handed = drawn_again(function, x, units)
    torch.testing.assert_close(alone, own)
    assert handed.certain


def test_draws_that_may_be_anybodys_are_not_certain():
    alone, own, handed = drawn_again(lambda x: x * torch.rand(()), torch.ones(U, 4), [3])
    torch.testing.assert_close(alone, own)
    assert not handed.certain
    assert not drawn_again(lambda x: x + torch.randn(4, len(x)).T, torch.ones(U, 4), [3])[2].certain


def test_draws_that_do_not_line_up_fail():
    with pytest.raises(RuntimeError, match="can't be lined up"):
        drawn_again(lambda x: x + torch.randn(len(x) + 1)[1:, None], torch.ones(U, 4), [3])
    with pytest.raises(RuntimeError, match="can't be lined up"):
        drawn_again(lambda x: x + torch.randn(len(x) if len(x) > 1 else 2).mean(), torch.ones(U, 4), [3])


class Net(nn.Module):
    def __init__(self, *, kept: bool = False) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.Sequential(self.first, nn.Tanh(), self.drop)
        hidden = checkpoint(inner, x, use_reentrant=False) if self.kept else inner(x)
        return self.last(hidden)


@pytest.mark.parametrize("kept", [False, True])
def test_a_gradient_alone_is_the_rows_own(kept):
    """Activation checkpointing runs the dropout again in backward."""
    torch.manual_seed(0)
    net, x = Net(kept=kept), torch.randn(U, 4)
    recording = Recording()
    with recording:
        losses = net(x).square().flatten()
    losses[2].backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    rerun = Rerun(net, loss=lambda module, rows: module(rows).square().mean(), device=torch.device("cpu"))
    handed = HandedOut(recording, [2], num_units=U, rows=frozenset({1}))
    found = rerun.gradient(x[[2]], draws=handed)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert all(p.grad is None for p in net.parameters())


def test_a_step_that_does_not_run_is_said_so():
    def loss(module, rows):
        raise KeyError("a private value")

    rerun = Rerun(Net(), loss=loss, device=torch.device("cpu"))
    with pytest.raises(CouldNotRun):
        rerun.gradient(torch.zeros(1, 4), draws=RowAlignedRandomness())


@pytest.mark.parametrize(
    ("factor", "kind"),
    [
        ({}, None),
        (dict.fromkeys(("first.weight", "first.bias", "last.weight", "last.bias"), 1.01), "coupling"),
        ({"first.weight": 0.0}, "engine"),
        ({"first.bias": 1.05}, "engine"),
        ({"last.bias": float("nan")}, "engine"),
    ],
)
def test_norms_that_are_not_a_units_own(factor, kind):
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(U, 4)
    rerun = Rerun(net, loss=lambda m, rows: (m(rows) - 1).square().mean(), device=torch.device("cpu"))
    each = [rerun.gradient(x[[unit]], draws=RowAlignedRandomness()) for unit in range(U)]
    norms = {
        name: torch.stack([gradient[name].norm() for gradient in each]) * factor.get(name, 1.0)
        for name in each[0]
    }
    totals = torch.stack(list(norms.values())).nan_to_num(0).norm(dim=0)
    tolerance = Tolerance.of(half=False, device=torch.device("cpu"), norms=totals, max_grad_norm=1.0)
    look = SecondLook(rerun, pick=lambda some: x[list(some)], units=[3, 0], tolerance=tolerance)
    found = look.compare(norms, totals=totals, draws=lambda _: RowAlignedRandomness())
    assert (found and found.kind) == kind
    if kind == "engine":
        assert found.place == next(iter(factor))


def test_half_precision_is_noticed_and_given_more_room():
    recording = Recording()
    with recording, torch.autocast("cpu", torch.bfloat16):
        F.linear(torch.ones(2, 4), torch.ones(3, 4))
    assert recording.half
    cpu, norms = torch.device("cpu"), torch.ones(3)
    fine, coarse = (Tolerance.of(half=h, device=cpu, norms=norms, max_grad_norm=1.0) for h in (False, True))
    assert fine.allowed(1.0) < 3e-3 < 0.02 < coarse.allowed(1.0) < 0.1
