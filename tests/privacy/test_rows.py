"""What DTensor says of operators, which all about units goes by: a change of torch has to show here."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.privacy.rows import (
    PRETENDED,
    ReadByPython,
    UnitDim,
    UnitsMixed,
    check_loss,
    following,
    own_part,
    spread,
    units_of,
)

WEIGHT = torch.randn(6, 8)


def _unit() -> Tensor:
    return torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(0))


KEPT = {
    "linear": (lambda x: F.linear(x, WEIGHT), UnitDim(0)),
    "time first": (lambda x: F.linear(x.transpose(0, 1), WEIGHT), UnitDim(1)),
    "folded with tokens": (lambda x: x.reshape(-1, 8), UnitDim(0)),
    "folded inside of tokens": (lambda x: x.transpose(0, 1).reshape(-1, 8), UnitDim(0, 7)),
    "per-row losses": (
        lambda x: F.cross_entropy(x[:, 0], (x[:, 0, 0] > 0).long(), reduction="none"),
        UnitDim(0),
    ),
    "softmax over tokens": (lambda x: x.softmax(dim=1), UnitDim(0)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), UnitDim(0)),
    "convolution": (lambda x: F.conv1d(x, torch.randn(4, 7, 3)), UnitDim(0)),
    "group norm": (lambda x: F.group_norm(x, 7), UnitDim(0)),
    "dropout": (lambda x: F.dropout(x, 0.5), UnitDim(0)),
    "draws for each row": (lambda x: x + torch.randn(len(x), 7, 8), UnitDim(0)),
    "draws alone": (lambda x: torch.randint(5, (x.shape[0],)), UnitDim(0)),
    "zeros for each row, second": (lambda x: torch.zeros(2, len(x), 3), UnitDim(1)),
    "one token of each row": (lambda x: x[torch.arange(len(x)), x[:, :, 0].argmax(dim=1)], UnitDim(0)),
    "repeated side by side": (lambda x: x.repeat_interleave(3, dim=0), UnitDim(0)),
    "in one piece": (lambda x: torch.cat([part * 2 for part in x.split(64)]), UnitDim(0)),
    "a constant": (lambda x: torch.arange(7) * WEIGHT[:, :7], None),
}


@pytest.mark.parametrize("case", KEPT)
def test_where_units_are(case):
    step, place = KEPT[case]
    with following():
        assert units_of(step(spread(_unit()))) == place


def _square(x: Tensor) -> Tensor:
    return x @ x.transpose(-1, -2) + torch.eye(x.shape[-2])


def _marked(x: Tensor) -> Tensor:
    marks = x > 0
    marks[:, -3:] = True
    return marks.float() * x


def _written(x: Tensor) -> Tensor:
    found = torch.zeros(len(x), 7, 8)
    found[torch.arange(len(x)), x[:, :, 0].argmax(dim=1)] = x[:, 0]
    return found


AS_ALONE = {
    "triangle": lambda x: _square(x).tril(),
    "diagonal": lambda x: _square(x).diagonal(dim1=1, dim2=2),
    "padded": lambda x: F.pad(x, (1, 2)),
    "padded, units second": lambda x: F.pad(x.transpose(0, 1), (1, 2, 0, 0, 2, 1)),
    "windows": lambda x: x.unfold(1, 4, 2),
    "windows, units second": lambda x: x.transpose(0, 1).unfold(0, 4, 2),
    "inverse": lambda x: torch.linalg.inv(_square(x)),
    "solution": lambda x: torch.linalg.solve(_square(x), x),
    "Cholesky": lambda x: torch.linalg.cholesky(_square(x)),
    "singular values": torch.linalg.svdvals,
    "eigenvalues": lambda x: torch.linalg.eigvalsh(_square(x)),
    "determinant": lambda x: torch.logdet(_square(x)),
    "orthogonal part": lambda x: torch.linalg.qr(x)[1],
    "reflected": lambda x: F.pad(x, (2, 2), mode="reflect"),
    "repeated at the ends": lambda x: F.pad(x[:, None], (1, 1, 1, 1), mode="replicate"),
    "distances": lambda x: torch.cdist(x, x),
    "distances from a table": lambda x: torch.cdist(x, WEIGHT),
    "bins of a table": lambda x: torch.searchsorted(torch.linspace(-1, 1, 5), x.contiguous()),
    "pooled": lambda x: F.adaptive_avg_pool1d(x, 1),
    "pooled to four": lambda x: F.adaptive_avg_pool1d(x, 4),
    "pooled image": lambda x: nn.AdaptiveAvgPool2d(1)(x[:, None]),
    "Gaussian likelihood": lambda x: F.gaussian_nll_loss(x, x * 2, x.square(), reduction="none"),
    "density": lambda x: torch.distributions.Normal(x, 1.0).log_prob(x * 2),
    "divergence": lambda x: torch.distributions.kl_divergence(
        torch.distributions.Normal(x, 1.0), torch.distributions.Normal(0.0, 1.0)
    ),
    "written into each row": _written,
    "marked": _marked,
    "checkpointed": lambda x: torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=True),
}


@pytest.mark.parametrize("case", AS_ALONE)
def test_each_unit_has_what_it_has_alone(case):
    step, unit = AS_ALONE[case], _unit()
    with following():
        found = step(spread(unit))
        assert units_of(found) == UnitDim(1 if "second" in case else 0)
    torch.testing.assert_close(own_part(found), step(unit))


MIXED = {
    "triangle of units": lambda x: x[:, 0].tril(),
    "diagonal of units": lambda x: x.diagonal(dim1=0, dim2=1),
    "padding by units": lambda x: F.pad(x, (0, 0) * (x.ndim - 1) + (0, 1)),
    "windows of units": lambda x: x.unfold(0, 4, 2),
    "matrix with units as rows": lambda x: torch.linalg.svdvals(x[:, 0]),
    "orthogonal units": lambda x: torch.linalg.qr(x.transpose(0, 1))[0],
    "neighbours at the ends": lambda x: F.pad(x.transpose(0, 2), (1, 1), mode="reflect"),
    "distances of units": lambda x: torch.cdist(x[:, 0], x[:, 0]),
    "ranks among units": lambda x: torch.searchsorted(x[:, 0, 0].sort().values, x[:, 1, 1]),
    "pooled units": lambda x: x.transpose(0, 2) - F.adaptive_avg_pool1d(x.transpose(0, 2), 1),
    "written into other rows": lambda x: torch.zeros(len(x), 8).index_put(
        (torch.arange(len(x)).flip(0),), x[:, 0]
    ),
    "gathered in one row": lambda x: torch.zeros(len(x), 8).index_put(
        (torch.zeros(len(x), dtype=torch.long),), x[:, 0], accumulate=True
    ),
    "gathered in a table": lambda x: torch.zeros(5, 8).index_put(
        (torch.arange(len(x)) % 5,), x[:, 0], accumulate=True
    ),
    "written by label": lambda x: torch.zeros(5, 8).index_put(
        ((x[:, 0, 0] > 0).long(),), x[:, 0], accumulate=True
    ),
    "counts looked up": lambda x: F.one_hot((x[:, 0, 0] > 0).long(), 5).sum(dim=0)[(x[:, 0, 0] > 0).long()],
    "sums looked up": lambda x: x.sum(dim=0)[(x[:, 0, 0] > 0).long()],
    "mean": lambda x: x - x.mean(dim=0),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, dims=0),
    "permutation": lambda x: x[torch.randperm(len(x))],
    "running sum": lambda x: x.cumsum(dim=0),
    "sort": lambda x: x.sort(dim=0).values,
    "largest": lambda x: x / x.abs().max(),
    "the first for all": lambda x: x - x[0],
    "pairs": lambda x: x[::2] - x[1::2],
    "one after the other": lambda x: x.repeat(3, 1, 1),
    "products of rows": lambda x: x[:, 0] @ x[:, 0].T,
    "BatchNorm": lambda x: nn.BatchNorm1d(7)(x),
    "ignored labels": lambda x: F.cross_entropy(x.flatten(0, 1), (x[:, :, 0] > 0).long().flatten()),
    "weights of classes": lambda x: F.cross_entropy(x[:, 0], (x[:, 0, 0] > 0).long(), weight=torch.ones(8)),
    "a ratio of sums": lambda x: x.sum() / (x > 0).sum(),
    "a buffer": lambda x: torch.zeros(7, 8).lerp_(x.mean(dim=0), 0.5),
    "selected rows": lambda x: x[x[:, 0, 0] > 0],
}


@pytest.mark.parametrize("case", MIXED)
def test_what_mixes_units_raises_at_its_line(case):
    with following(), pytest.raises(UnitsMixed, match=r"test_rows\.py:\d+"):
        MIXED[case](spread(_unit()))


READ = {
    "float": lambda x: float(x.mean()),
    "item": lambda x: x.sum().item(),
    "list": lambda x: x[:, 0, 0].tolist(),
    "numpy": lambda x: x.numpy(),
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("case", READ)
def test_numbers_that_python_reads(case):
    with following(), pytest.raises(ReadByPython):
        READ[case](spread(_unit()))


@pytest.mark.parametrize("condition", [lambda x: bool(x.isnan().any()), lambda x: max(x[:, 0, 0])])
def test_conditions_on_a_batch(condition):
    with following(), pytest.raises(UnitsMixed):
        condition(spread(_unit()))


@pytest.mark.parametrize("place", [UnitDim(0), UnitDim(1), UnitDim(1, 2)])
def test_units_are_split_and_joined(place):
    whole = torch.randn(4, 12, 5) if place.dim else torch.randn(6, 4)
    split = place.split(whole, units=3 if place.dim else 2)
    assert len(split) == (3 if place.dim else 2)
    assert torch.equal(place.join(split), whole)


def test_the_pretended_number_is_prime():
    assert all(PRETENDED % divisor for divisor in range(2, PRETENDED))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_usual_loss_of_one_label_a_row(smoothing):
    x = spread(_unit())
    with following():
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing)(x[:, 0], (x[:, 0, 0] > 0).long())
        check_loss(loss)
