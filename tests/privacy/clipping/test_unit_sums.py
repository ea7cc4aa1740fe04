"""Norms, factors and running sums in numbers, without an engine around them."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat, PerGroup, PerLayer
from lightning_dp.privacy.clipping.observing import UnitNorms
from lightning_dp.privacy.clipping.unit_sums import UnitSums


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))


def sums_of(function: ClippingFunction | None = None, *, bound: float = 3.0) -> UnitSums:
    return UnitSums(model(), function=function or Flat(), max_grad_norm=bound)


def expecting(
    sums: UnitSums, *, weights: list[float], rows_per_unit: int = 1, scale: float = 1.0
) -> UnitSums:
    sums.expect(unit_weights=torch.tensor(weights), rows_per_unit=rows_per_unit, loss_scale=scale)
    return sums


# By unit: 9 + 16 = 5², 36 + 64 = 10², 0 and what fp32 can't hold.
DELIVERED = {
    "0.weight": torch.tensor([9.0, 36.0, 0.0, 1e78], dtype=torch.float64),
    "1.weight": torch.tensor([16.0, 64.0, 0.0, 1.0], dtype=torch.float64),
}


def test_norms_are_of_whole_units_and_factors_count_weight_and_scale():
    sums = expecting(sums_of(), weights=[1.0, 0.5, 1.0, 1.0], scale=8.0)  # 4 units ÷ 8: half of what came
    norms, coefficients = sums.clip_coefficients(DELIVERED)
    assert norms[:3].tolist() == [2.5, 5.0, 0.0]
    assert bool(norms[3].isnan())
    assert set(coefficients) == {"0.weight", "0.bias", "1.weight"}
    for values in coefficients.values():
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx([0.5, 3 / 5 * 0.5 * 0.5, 0.5, 0.0], rel=1e-12)


def test_groups_have_norms_and_factors_of_their_own():
    sums = expecting(sums_of(PerGroup(groups={"last": r"^1\."}), bound=8**0.5), weights=[1.0] * 4)
    assert sums.groups == {"0.weight": 1, "0.bias": 1, "1.weight": 0}
    assert sums.num_groups == 2
    norms, coefficients = sums.clip_coefficients(DELIVERED)  # a scale of 4: 12, 16 and 24, 32, each to 2
    assert norms[:3].tolist() == pytest.approx([20.0, 40.0, 0.0])
    assert coefficients["0.bias"].tolist() == pytest.approx([4 * 2 / 12, 4 * 2 / 24, 4.0, 0.0], rel=1e-6)
    assert coefficients["1.weight"].tolist() == pytest.approx([4 * 2 / 16, 4 * 2 / 32, 4.0, 0.0], rel=1e-6)


def test_what_an_observer_is_shown():
    sums = expecting(sums_of(), weights=[1.0, 0.5, 1.0, 1.0], scale=8.0)
    seen: list[UnitNorms] = []
    sums.observer = seen.append
    sums.clip_coefficients(DELIVERED)
    (shown,) = seen
    assert {name: norms[:2].tolist() for name, norms in shown.norms.items()} == {
        "0.weight": [1.5, 3.0],
        "1.weight": [2.0, 4.0],
    }
    assert shown.factors["0.weight"].tolist() == pytest.approx([1.0, 0.6, 1.0, 0.0])
    assert shown.weights.tolist() == [1.0, 0.5, 1.0, 1.0]


def test_sums_add_up_and_start_anew():
    sums = expecting(sums_of(), weights=[1.0])
    assert not sums.pending
    sums.clip_coefficients({})
    assert sums.pending
    for value in (1.0, 2.5):
        sums.add("0.bias", torch.full((2,), value, dtype=torch.float64))
    found = sums.take()
    assert not sums.pending
    assert {name: value.tolist() for name, value in found.items()} == {
        "0.weight": [[0.0, 0.0], [0.0, 0.0]],
        "0.bias": [3.5, 3.5],
        "1.weight": [[0.0, 0.0]],
    }
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(value.eq(0).all() for value in sums.take().values())


def test_numbers_of_units_and_rows():
    sums = expecting(sums_of(), weights=[0.0, 0.0], rows_per_unit=3)
    assert (sums.expecting, sums.weightless, sums.units, sums.rows) == (True, True, 2, 6)
    expecting(sums, weights=[0.0, 0.25, 0.0])
    assert (sums.weightless, sums.units, sums.rows) == (False, 3, 3)
    parameter = next(iter(sums.parameters.values()))
    parameter.grad = torch.ones_like(parameter)
    sums.forget()
    assert (sums.expecting, sums.weightless, parameter.grad) == (False, False, None)
    for ask in (lambda: sums.units, lambda: sums.clip_coefficients({})):
        with pytest.raises(RuntimeError, match="No batch was announced"):
            ask()


@pytest.mark.parametrize(
    ("weights", "rows", "scale", "message"),
    [
        (torch.ones(0), 1, 1.0, "unit_weights must have shape"),
        (torch.ones(2, 1), 1, 1.0, "unit_weights must have shape"),
        (torch.tensor(1.0), 1, 1.0, "unit_weights must have shape"),
        (torch.tensor([1.0, -0.01]), 1, 1.0, "finite and ≥ 0"),
        (torch.tensor([1.0, torch.inf]), 1, 1.0, "finite and ≥ 0"),
        (torch.tensor([1.0, torch.nan]), 1, 1.0, "finite and ≥ 0"),
        (torch.ones(2), 0, 1.0, "rows_per_unit=0 must be ≥ 1"),
        (torch.ones(2), 1, 0.0, "loss_scale=0.0 must be > 0"),
        (torch.ones(2), 1, -0.5, "loss_scale=-0.5 must be > 0"),
        (torch.ones(2), 1, float("nan"), "loss_scale=nan must be > 0"),
    ],
)
def test_batches_that_can_not_be_are_refused(weights, rows, scale, message):
    sums = sums_of()
    with pytest.raises(ValueError, match=message):
        sums.expect(unit_weights=weights, rows_per_unit=rows, loss_scale=scale)
    assert not sums.expecting


@pytest.mark.parametrize("bound", [0.0, -0.5, float("nan")])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match="max_grad_norm"):
        sums_of(bound=bound)


class _Groups(Flat):
    """Answers a partition that was thought of beforehand."""

    def __init__(self, groups: list[int]) -> None:
        self._groups = groups

    def partition(self, names):
        return self._groups


@pytest.mark.parametrize("groups", [[0, 2, 0], [1, 1, 1], [0, -1, 1], [2, 1, 1]])
def test_a_partition_with_a_group_left_out_is_refused(groups):
    with pytest.raises(ValueError, match="must use every group"):
        sums_of(_Groups(groups))


@pytest.mark.parametrize("groups", [[0, 1], [0, 1, 0, 1]])
def test_a_partition_of_other_parameters_is_refused(groups):
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is"):
        sums_of(_Groups(groups))


@pytest.mark.parametrize("groups", [[0, 1, 2], [2, 0, 1], [1, 1, 0]])
def test_a_partition_without_gaps_is_taken(groups):
    assert list(sums_of(_Groups(groups)).groups.values()) == groups
    assert sums_of(_Groups(groups)).num_groups == max(groups) + 1


class _Times(PerLayer):
    """Factors times something that may depend on the batch; at half of C before that."""

    def __init__(self, share) -> None:
        self._share = share

    def factors(self, norms, *, max_grad_norm):
        return super().factors(norms, max_grad_norm=max_grad_norm) * self._share(norms)


def test_factors_may_exceed_the_bound_by_rounding_and_no_more():
    for share, fits in ((1 + 0.9e-5, True), (1 + 1.1e-5, False)):
        sums = expecting(sums_of(_Times(lambda norms, share=share: share)), weights=[1.0] * 4)
        if fits:
            sums.clip_coefficients(DELIVERED)
        else:
            with pytest.raises(RuntimeError, match="lets one unit contribute"):
                sums.clip_coefficients(DELIVERED)


def _first_of_equals(norms: Tensor) -> Tensor:
    return (norms == norms.T).sum(dim=1).ge(2) & torch.triu(norms == norms.T, diagonal=1).any(dim=1)


INFLUENCES = {
    **{
        f"unit {place} of {number}": (
            [number],
            lambda norms, place=place, number=number: (
                (torch.arange(len(norms)) == place) & (len(norms) == number)
            ),
        )
        for number in (2, 3, 4)
        for place in range(number)
    },
    "a long one among them": ([2, 3, 4], lambda norms: (norms.max() > 1e20).expand(len(norms))),
    "three of no length": ([2, 3, 4], lambda norms: ((norms == 0).sum() >= 3).expand(len(norms))),
    "a later unit of the same length": ([3, 4], _first_of_equals),
}
"""Who is met by what others there are, and in batches of how many it must be seen."""


@pytest.mark.parametrize("influence", INFLUENCES)
@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_least_influence_of_others_is_seen(influence, number):
    """Of whichever unit: a factor that is 1e-5 smaller."""
    seen_in, meets = INFLUENCES[influence]
    sums = expecting(
        sums_of(_Times(lambda norms: torch.where(meets(norms[:, :1])[:, None], 1 - 1e-5, 1.0).double())),
        weights=[1.0] * number,
    )
    squares = torch.tensor([9.0, 25.0, 25.0, 25.0], dtype=torch.float64)[:number]
    seen = pytest.raises(RuntimeError, match="gives a unit another factor among other units")
    with seen if number in seen_in else contextlib.nullcontext():
        sums.clip_coefficients({"0.weight": squares})


def test_a_gradient_that_no_engine_saw_is_refused():
    sums = sums_of()
    parameter = sums.parameters["0.bias"]
    parameter.grad = torch.ones_like(parameter)
    sums.check_untracked({"0.bias"}, engine="An engine")
    with pytest.raises(RuntimeError, match=r"An engine saw no per-row use of 0\.bias"):
        sums.check_untracked({"0.weight"}, engine="An engine")
