"""The factors of each clipping function, in numbers."""

import pytest
import torch

from lightning_dp.privacy.clipping.functions import Automatic, Flat, PerGroup, PerLayer

C = 3.0
NAMES = ["net.0.weight", "net.0.bias", "net.cond.weight", "head.weight", "net.10.bias"]


def factors(function, norms: list[list[float]], *, bound: float = C) -> list[list[float]]:
    return function.factors(torch.tensor(norms, dtype=torch.float64), max_grad_norm=bound).tolist()


def test_flat():
    assert Flat().partition(NAMES) == [0] * 5
    assert factors(Flat(), [[0.0], [1e-90], [2.0], [3.0], [4.0], [3e30]]) == [
        [1.0],
        [1.0],
        [1.0],
        [1.0],
        [0.75],
        [1e-30],
    ]


def test_automatic():
    assert Automatic().partition(NAMES) == [0] * 5
    assert factors(Automatic(stability=0.5), [[0.0], [1.0], [5.5]]) == [[6.0], [2.0], [0.5]]
    assert factors(Automatic(), [[0.0]]) == [[C / 0.01]]
    for stability in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="must be > 0"):
            Automatic(stability=stability)


def test_per_layer():
    assert PerLayer().partition(NAMES) == [0, 0, 1, 2, 3]
    # Four layers have 1.5 each.
    assert factors(PerLayer(), [[0.0, 1.5, 3.0, 6.0]]) == [[1.0, 1.0, 0.5, 0.25]]


def test_per_group():
    groups = {"condition": r"\.cond\.", "first": [r"^net\.0\.weight", r"^net\.0\.bias"]}
    function = PerGroup(groups=groups, shares={"first": 2.0, "other": 6.0})
    assert function.partition(NAMES) == [1, 1, 0, 2, 2]
    # Shares 1, 2 and 6 of C² = 9: at 1, √2 and √6.
    (found,) = factors(function, [[4.0, 0.0, 24**0.5]])
    assert found == pytest.approx([0.25, 1.0, 0.5], rel=1e-6)
    assert factors(function, [[1.0 - 1e-6, 2**0.5 - 1e-6, 6**0.5 - 1e-6]]) == [[1.0] * 3]
    every = PerGroup(groups={"net": "net", "head": "head"})
    assert every.partition(NAMES) == [0, 0, 0, 1, 0]
    assert factors(every, [[6.0, 3.0]])[0] == pytest.approx([0.5 / 2**0.5, 1 / 2**0.5], rel=1e-6)


def test_groups_that_can_not_be_clipped_apart_are_refused():
    with pytest.raises(ValueError, match="groups is empty"):
        PerGroup(groups={})
    with pytest.raises(ValueError, match=r"shares names \['b'\], which groups does not"):
        PerGroup(groups={"a": "x"}, shares={"b": 1.0, "a": 1.0, "other": 1.0})
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="every share must be > 0"):
            PerGroup(groups={"a": "x"}, shares={"a": share})
    with pytest.raises(ValueError, match=r"groups\['b'\]=\['nothing'\] matches no trainable parameter"):
        PerGroup(groups={"a": "net", "b": "nothing"}).partition(NAMES)
    assert PerGroup(groups={"a": "net"}, shares={"a": 0.25}).partition(NAMES) == [0, 0, 0, 1, 0]
    known = PerGroup(groups={"a": "net"})
    with pytest.raises(RuntimeError, match="was not asked before"):
        known.factors(torch.ones(2, 2), max_grad_norm=C)
    known.partition(NAMES)
    for groups in (1, 3):
        with pytest.raises(RuntimeError, match="was not asked before"):
            known.factors(torch.ones(2, groups), max_grad_norm=C)
