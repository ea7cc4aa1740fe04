"""Which rows a rank scores."""

import pytest
from torch import distributed as dist
from torch.utils.data import DistributedSampler

from lightning_dp.strategies.every_row_once import EveryRowOnce, evaluation_sampler


def _of(monkeypatch, kind, *, rows, ranks):
    """The rows of each rank, as `kind` shares them."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(dist, "get_rank", lambda *_, rank=rank: rank)
        sampler = kind(range(rows))
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    return shares


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [8, 9, 13, 580])
def test_the_shares_are_disjoint_in_order_and_hold_every_row(monkeypatch, rows, ranks):
    shares = _of(monkeypatch, EveryRowOnce, rows=rows, ranks=ranks)
    assert sorted(row for share in shares for row in share) == list(range(rows))
    assert all(share == sorted(share) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_usual_sampler_repeats_rows(monkeypatch):
    """What this one is there for; and it must stay a kind of it, or Lightning would replace it."""
    shares = _of(monkeypatch, lambda data: DistributedSampler(data, shuffle=False), rows=13, ranks=4)
    assert sum(map(len, shares)) == 16
    assert issubclass(EveryRowOnce, DistributedSampler)


def test_a_rank_without_rows_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"3 rows .* 4 processes.*--trainer.devices 3"):
        _of(monkeypatch, EveryRowOnce, rows=3, ranks=4)


def test_one_process_needs_none():
    assert evaluation_sampler(range(5)) is None
