"""Sums and second moments by group: what one unit moves them by, and what comes out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lightning_dp.privacy.grouped_moments import GroupedSecondMoments, GroupedSums

SIZES = {"noise_multiplier": 1.0, "num_groups": 3, "dimension": 4, "max_norm": 2.0}
BOTH = [GroupedSums(**SIZES), GroupedSecondMoments(**SIZES)]


def units(count: int, *, rows: int = 1, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = scale * rng.normal(size=(count, rows, SIZES["dimension"]))
    return np.concatenate([rng.integers(0, SIZES["num_groups"], (count, rows, 1)), vectors], axis=2)


@pytest.mark.parametrize("mechanism", BOTH, ids=lambda one: type(one).__name__)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3),
    scale=st.sampled_from([1e-3, 1.0, 50.0, 1e150]),
    seed=st.integers(0, 10_000),
    odd=st.sampled_from([None, math.nan, math.inf, -1.0, 7.0]),
)
def test_a_unit_moves_the_sums_by_at_most_the_sensitivity(mechanism, rows, scale, seed, odd):
    values = units(9, rows=rows, seed=seed, scale=scale)
    if odd is not None:
        values[0, 0, 0 if odd in (-1.0, 7.0) else 2] = odd
    moved = np.linalg.norm(mechanism.sums(values) - mechanism.sums(values[1:]))
    assert moved <= mechanism.sensitivity * (1 + 1e-9)
    if scale >= 50 and odd is None and rows == 1:
        assert moved == pytest.approx(mechanism.sensitivity), "clipped units move it by all that is paid for"


def test_without_noise_they_are_counts_sums_and_second_moments():
    values = units(50, scale=0.1)
    groups, vectors = values[:, 0, 0], values[:, 0, 1:]
    sums, moments = BOTH
    counts, found = sums.answer(sums.sums(values))
    second = moments.answer(moments.sums(values))
    for group in range(3):
        own = vectors[groups == group]
        assert counts[group] == pytest.approx(len(own))
        np.testing.assert_allclose(found[group], own.sum(axis=0), atol=1e-12)
        np.testing.assert_allclose(second[group], own.T @ own, atol=1e-12)


def test_rows_of_no_group_and_without_numbers_add_nothing():
    values = units(6)
    without = values[2:]
    values[0, 0, 0], values[1, 0, 3] = -1, np.nan
    for mechanism in BOTH:
        np.testing.assert_allclose(mechanism.sums(values), mechanism.sums(without))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 0}, "num_groups is 0"),
        ({"dimension": 0}, "dimension is 0"),
        ({"max_norm": math.inf}, "max_norm is inf"),
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroupedSums(**{**SIZES, **options})


def test_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"has the shape \(5, 4\)"):
        BOTH[0].sums(np.zeros((5, 4)))
