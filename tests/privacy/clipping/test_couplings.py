"""Sixty ways in which rows of a batch come to depend on each other, each found where a step is followed."""

import types

import pytest
import torch
import torch.nn.functional as F
from follow_steps import sites_of
from torch import Tensor, nn

from lightning_dp.privacy.rows import UnitsMixed

ROWS, TOKENS, WIDTH = 6, 8, 4
BATCH_NORM = nn.BatchNorm1d(WIDTH, affine=False)


def losses(h: Tensor) -> Tensor:
    """(R, …) → (R,)."""
    return h.flatten(1).square().mean(dim=1) if h.ndim > 1 else h.square()


def by_row(h: Tensor) -> Tensor:
    return losses(h - sum(row for row in h))


def class_centres(h: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([h[labels == c].mean(dim=0) for c in range(WIDTH)])[labels]


# h: (R, T, D) of a linear layer; labels (R,), weights (R,) and mask (R, T) are the batch's as well.
COUPLINGS = {
    "norm of all": lambda h: losses(h / h.norm()),
    "mean of rows": lambda h: losses(h - h.mean(dim=0)),
    "mean of all": lambda h: losses(h - h.mean()),
    "softmax over rows": lambda h: losses(h.softmax(dim=0)),
    "shares of rows": lambda h: losses(h.exp() / h.exp().sum(dim=0)),
    "norms over rows": lambda h: losses(F.normalize(h, dim=0)),
    "logsumexp of rows": lambda h: losses(h - h.logsumexp(dim=0)),
    "contrastive": lambda h: F.cross_entropy(
        h.flatten(1) @ h.flatten(1).T, torch.arange(len(h)), reduction="none"
    ),
    "distances": lambda h: torch.cdist(h.flatten(1), h.flatten(1)).mean(dim=1),
    "products": lambda h: torch.einsum("bi,ci->bc", h.mean(dim=1), h.mean(dim=1)).mean(dim=1),
    "Gram matrix": lambda h: losses(h.flatten(1).T @ h.flatten(1)),
    "outer product": lambda h: torch.outer(losses(h), losses(h)).mean(dim=1),
    "triangle of products": lambda h: torch.outer(losses(h), losses(h)).tril().sum(dim=1),
    "covariance": lambda h: losses(h) + torch.cov(h.flatten(1).T).sum(),
    "correlation": lambda h: losses(h) * torch.corrcoef(h.flatten(1)).sum(),
    "determinant": lambda h: losses(h) + torch.logdet(h.flatten(1) @ h.flatten(1).T + torch.eye(len(h))),
    "singular values": lambda h: losses(h) + torch.linalg.svdvals(h.flatten(1)).sum(),
    "permuted": lambda h: losses(h - h[torch.randperm(len(h))]),
    "rolled": lambda h: losses(h - h.roll(1, dims=0)),
    "mixed up": lambda h: losses(0.5 * h + 0.5 * h.flip(0)),
    "shifted": lambda h: losses(h - torch.cat([h[1:], h[:1]])),
    "padded by a row": lambda h: losses(h - F.pad(h, (0, 0, 0, 0, 1, 0))[:-1]),
    "the first row": lambda h: losses(h - h[:1].expand_as(h)),
    "the last row": lambda h: losses(h - h[-1]),
    "the largest row": lambda h: losses(h - h[losses(h).argmax()]),
    "selected rows": lambda h: losses(h - h.index_select(0, torch.arange(len(h)).flip(0))),
    "gathered rows": lambda h: losses(
        h - h.gather(0, torch.zeros(1, TOKENS, WIDTH).long().expand(len(h), -1, -1))
    ),
    "pairs": lambda h: losses(h[0::2] - h[1::2]),
    "differences": lambda h: losses(h.diff(dim=0, prepend=h[:1])),
    "running sum": lambda h: losses(h.cumsum(dim=0)),
    "sorted": lambda h: losses(h.sort(dim=0).values),
    "spectrum over rows": lambda h: losses(torch.fft.fft(h, dim=0).abs()),
    "one by one in Python": by_row,
    "rows as tokens": lambda h: losses(
        F.scaled_dot_product_attention(*(h.transpose(0, 1),) * 3).transpose(0, 1)
    ),
    "products of rows, token by token": lambda h: losses(
        torch.bmm(h.transpose(0, 1), h.permute(1, 2, 0)).permute(1, 0, 2)
    ),
    "wrongly unfolded": lambda h: losses(h.reshape(TOKENS, -1, WIDTH).transpose(0, 1)),
    "wrongly folded": lambda h: losses(h.transpose(0, 1).reshape(len(h), TOKENS, WIDTH)),
    "batch norm": lambda h: losses(BATCH_NORM(h.mean(dim=1))),
    "layer norm of all": lambda h: losses(F.layer_norm(h, h.shape)),
    "group norm of folded rows": lambda h: losses(
        F.group_norm(h.flatten(0, 1)[None].transpose(1, 2), 2)[0].T.view_as(h)
    ),
    "median of losses": lambda h: (lambda found: found[found < found.median()].mean())(losses(h)),
    "quantile of losses": lambda h: (lambda found: found * (found < found.quantile(0.9)))(losses(h)),
    "hardest rows": lambda h: losses(h).topk(3).values.mean(),
    "ranks": lambda h: losses(h) * losses(h).argsort().argsort(),
    "largest loss": lambda h: 0.1 * losses(h) + losses(h).max(),
    "the largest alone": lambda h: torch.where(losses(h) == losses(h).max(), losses(h), 0.0),
    "by the largest": lambda h: losses(h) / losses(h).max(),
    "product of losses": lambda h: losses(h) * losses(h).prod(),
    "spread of losses": lambda h: losses(h) + losses(h).std(),
    "any above": lambda h: losses(h) * (losses(h) > 1).any(),
    "weighted mean": lambda h, weights: (losses(h) * weights).sum() / weights.sum(),
    "mean of what is there": lambda h, mask: (h.square().mean(dim=-1) * mask).sum() / mask.sum(),
    "ratio of sums": lambda h: losses(h).sum() / h.abs().sum(),
    "logarithm of the mean": lambda h: losses(h).mean().log(),
    "square of the mean": lambda h: losses(h).mean() ** 2,
    "product of means": lambda h: losses(h).mean() * h.mean(),
    "entropy of the mean": lambda h: losses(h) + (lambda p: (p * p.log()).sum())(h.mean((0, 1)).softmax(0)),
    "frequency of labels": lambda h, labels: losses(h) / torch.bincount(labels, minlength=WIDTH)[labels],
    "count of labels": lambda h, labels: losses(h) / F.one_hot(labels, WIDTH).sum(dim=0)[labels],
    "mean label": lambda h, labels: losses(h) * labels.float().mean(),
    "sums by label": lambda h, labels: losses(
        torch.zeros(WIDTH, *h.shape[1:]).index_add(0, labels, h)[labels]
    ),
    "centres of labels": lambda h, labels: losses(h - class_centres(h, labels)),
}


@pytest.mark.parametrize("case", COUPLINGS)
def test_it_is_found_at_its_line(case):
    torch.manual_seed(0)
    step: types.FunctionType = COUPLINGS[case]
    net, x = nn.Linear(WIDTH, WIDTH), torch.randn(ROWS, TOKENS, WIDTH)
    batch = {
        "labels": torch.arange(ROWS) % WIDTH,
        "weights": torch.rand(ROWS),
        "mask": torch.rand(ROWS, TOKENS) > 0.3,
    }
    asked = step.__code__.co_varnames[1 : step.__code__.co_argcount]
    more = {name: batch[name] for name in asked}
    with pytest.raises(UnitsMixed, match=r"test_couplings\.py:\d+"):
        sites_of(net, lambda: step(net(x), **more), units=ROWS)


def test_rows_that_are_left_alone_pass():
    torch.manual_seed(0)
    net, x = nn.Linear(WIDTH, WIDTH), torch.randn(ROWS, TOKENS, WIDTH)
    weights = torch.rand(ROWS)
    sites = sites_of(net, lambda: losses(net(x)) * weights, units=ROWS)
    assert sites.answers
