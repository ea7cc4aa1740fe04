"""Each kind of use against its per-unit gradients in fp64, with chunks and strips smaller than the units."""

import pytest
import torch
from torch import Tensor

from lightning_dp.privacy.clipping import exact
from lightning_dp.privacy.clipping._book_keeping import floors, per_unit_gradient
from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import (
    ChunkedGradient,
    EmbeddingGradient,
    KeptGradient,
    OuterProductGradient,
    PerUnitGradient,
    SummedGradient,
)
from lightning_dp.privacy.clipping.exact import bmm, exact_products, kept_sum, scaled_product

U, OUT, IN = 7, 4, 5


def _sides(tokens: int, *, outputs: int = OUT, inputs: int = IN) -> tuple[Tensor, Tensor]:
    return torch.randn(U, tokens, inputs), torch.randn(U, tokens, outputs)


def _products(inputs: Tensor, grads: Tensor) -> Tensor:
    return torch.einsum("utp,utd->upd", grads.double(), inputs.double())


def _outer(tokens: int) -> tuple[PerUnitGradient, Tensor]:
    sides = _sides(tokens)
    return OuterProductGradient(*sides), _products(*sides)


def _chunked(outputs: int, inputs: int) -> tuple[PerUnitGradient, Tensor]:
    sides = _sides(3, outputs=outputs, inputs=inputs)
    return ChunkedGradient(*sides), _products(*sides)


def _kept() -> tuple[PerUnitGradient, Tensor]:
    gradients = torch.randn(U, 2, 3)
    return KeptGradient(gradients), gradients.double()


def _lookup(tokens: int, *, different: bool = False) -> tuple[PerUnitGradient, Tensor]:
    index, grads = torch.randint(0, 3, (U, tokens)), torch.randn(U, tokens, 2)
    if different:
        index = torch.stack([torch.randperm(6)[:tokens] for _ in range(U)])
    whole = torch.zeros(U, 6, 2, dtype=torch.float64)
    for unit in range(U):
        for token in range(tokens):
            whole[unit, index[unit, token]] += grads[unit, token].double()
    return EmbeddingGradient(index, grads, num_embeddings=6), whole


def _sum() -> tuple[PerUnitGradient, Tensor]:
    parts = [_outer(2), _outer(3), (KeptGradient(kept := torch.randn(U, OUT, IN)), kept.double())]
    return SummedGradient.of([use for use, _ in parts], units=U), torch.stack(
        [whole for _, whole in parts]
    ).sum(dim=0)


KINDS = {
    "outer, one token": lambda: _outer(1),
    "outer": lambda: _outer(6),
    "outer, strips": lambda: _outer(66),
    "chunked, wide": lambda: _chunked(3, 5),
    "chunked, tall": lambda: _chunked(5, 3),
    "kept": _kept,
    "lookup, one token": lambda: _lookup(1),
    "lookup": lambda: _lookup(9),
    "lookup, all different": lambda: _lookup(6, different=True),
    "sum": _sum,
    "sum of outer ones": lambda: _joined(3),
    "sum of one": lambda: _joined(1),
}


def _joined(number: int) -> tuple[PerUnitGradient, Tensor]:
    parts = [_outer(tokens + 1) for tokens in range(number)]
    whole = torch.stack([whole for _, whole in parts]).sum(dim=0)
    return SummedGradient.of([use for use, _ in parts], units=U), whole


def _norms_of(use: PerUnitGradient) -> list[Tensor]:
    if isinstance(use, OuterProductGradient):
        ways = ("ghost", "direct", "keep", *(["outer"] if use.grads.shape[1] == 1 else []))
        return [use.squared_norms(method) for method in ways]
    return [use.squared_norms()]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two units of a weight of 4 × 5 at a time, three of one of 3 × 5."""
    torch.manual_seed(0)
    monkeypatch.setattr(per_unit_gradient, "_CHUNK_BYTES", 4 * 45)
    monkeypatch.setattr(per_unit_gradient, "_KEPT_BYTES", 4 * 45)


@pytest.mark.parametrize("kind", KINDS)
def test_a_use_is_its_gradients(kind):
    use, whole = KINDS[kind]()
    squares = whole.flatten(1).square().sum(dim=1)
    for found in _norms_of(use):
        torch.testing.assert_close(found, squares, rtol=1e-5, atol=0)
    some = torch.tensor([5, 0, 3])
    torch.testing.assert_close(use.per_unit(2, 5).double(), whole[2:5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(use.exactly(some), whole[some], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(use.exact_squares(some), squares[some], rtol=1e-5, atol=0)
    factors = torch.tensor([2.0, -0.5, 3.0], dtype=torch.float64)
    expected = torch.tensordot(factors, whole[some], dims=1)
    torch.testing.assert_close(use.exact_sum(some, factors).double(), expected, rtol=1e-5, atol=1e-5)
    factors = torch.arange(1.0, U + 1).double()
    expected = torch.tensordot(factors, whole, dims=1).float()
    torch.testing.assert_close(use.weighted_sum(factors), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_emptied_unit_is_exactly_nothing(kind):
    use, whole = KINDS[kind]()
    gone = torch.tensor([True, False, False, True, False, False, True])
    use.empty(gone)
    for found in _norms_of(use)[:1] if not isinstance(use, ChunkedGradient) else []:
        assert found[gone].eq(0).all()
        assert found[~gone].gt(0).all()
    assert use.exactly(torch.tensor([0, 3, 6])).eq(0).all()
    left = whole.masked_fill(gone.view(-1, *(1,) * (whole.ndim - 1)), 0).sum(dim=0).float()
    torch.testing.assert_close(use.weighted_sum(torch.ones(U).double()), left, rtol=1e-5, atol=1e-4)


def test_an_emptied_unit_may_have_been_anything():
    inputs, grads = _sides(2)
    grads[1], inputs[4, 0, 0] = torch.nan, torch.inf
    before = inputs.clone()
    use = OuterProductGradient(inputs, grads)
    use.empty(torch.tensor([False, True, False, False, True, False, False]))
    assert use.weighted_sum(torch.ones(U)).isfinite().all()
    assert torch.equal(inputs, before), "the batch is the user's"


@pytest.mark.parametrize("kind", ["outer", "outer, strips", "chunked, wide", "sum"])
def test_ordinary_units_are_trusted(kind):
    use, _ = KINDS[kind]()
    (squares, *_), floor = _norms_of(use), use.floor()
    assert floor is not None
    assert floor.shape == (U,)
    assert (squares > floor).all()
    if kind == "chunked, wide":
        return
    assert use.spread() is None or (use.spread() >= squares * (1 - 1e-6)).all()


@pytest.mark.parametrize("method", ["ghost", "direct", "keep"])
def test_units_that_fp32_may_have_got_wrong_are_below_the_floor(method):
    """Tokens that cancel, products that underflow, and sides beyond what fp32 stands."""
    inputs, grads = _sides(8)
    inputs[1, 4:], grads[1, 4:] = inputs[1, :4], -grads[1, :4] * (1 + 1e-6)
    inputs[2], grads[2] = inputs[2] * 1e-22, grads[2] * 1e-22
    inputs[3] *= 1e16
    grads[4] *= 1e16
    use = OuterProductGradient(inputs, grads)
    trusted = use.squared_norms(method) > use.floor()
    assert trusted.tolist() == [True, False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("method", "part"), [("ghost", 1e-3), ("direct", 1 / (5e3 * 20)), ("keep", 1 / (5e3 * 20))]
)
@pytest.mark.parametrize(("of_inputs", "of_grads"), [(1.0, 1.0), (1e3, 1e3), (1e-3, 1e4), (1e5, 1e-2)])
def test_the_floor_is_a_part_of_what_the_tokens_are_without_cancelling(method, part, of_inputs, of_grads):
    inputs, grads = _sides(66)
    use = OuterProductGradient(inputs * of_inputs, grads * of_grads)
    use.squared_norms(method)
    lengths = [side.double().norm(dim=2) for side in (use.inputs, use.grads)]
    if method == "ghost":
        whole = (lengths[0] * lengths[1]).sum(dim=1).square()
    else:
        whole = lengths[0].square().sum(dim=1) * lengths[1].square().sum(dim=1)
    torch.testing.assert_close(use.floor(), whole * part, rtol=1e-4, atol=0)


def test_the_floor_of_a_sum_is_a_part_of_the_squared_sum_of_lengths():
    parts = [_outer(2), (KeptGradient(kept := torch.randn(U, OUT, IN) * 1e3), kept.double())]
    use = SummedGradient.of([one for one, _ in parts], units=U)
    use.squared_norms()
    lengths = parts[0][0].spread().sqrt() + parts[1][1].flatten(1).norm(dim=1)
    torch.testing.assert_close(use.floor(), lengths.square() / (5e3 * 20), rtol=1e-4, atol=0)


def test_floors_where_fp32_loses_what_is_small_or_has_no_room():
    tiny, share = 2.0**-126, 1e-6
    numbers = torch.tensor([0.0, 1e30, 1.1e30, torch.inf, torch.nan], dtype=torch.float64)
    for found in (
        floors.beyond(numbers),
        floors.beyond(numbers, torch.ones(5)),
        floors.beyond(torch.ones(5), numbers),
    ):
        assert found.tolist() == [0.0, 0.0, torch.inf, torch.inf, torch.inf]
    assert floors.floor_of_kept(20) == 20 * tiny / share
    none, most = torch.zeros(1).double(), torch.ones(1).double()
    assert floors.floor_of_sums(none, most, numel=20).tolist() == [20 * tiny / share]
    assert floors.floor_of_sums(most * 6, most, numel=10**6).tolist() == pytest.approx([6e-7], abs=0)
    assert floors.floor_of_sums(most, most * 1.1e30, numel=20).tolist() == [torch.inf]
    left, right = torch.tensor([2.0]), torch.tensor([10.0])
    found = floors.floor_of_grams(left, right, plain=torch.zeros(1), tokens=7, widths=(3, 5))
    assert found.tolist() == pytest.approx([2 * tiny * 7 * (3 * 10 + 5 * 2 + 7) / share], abs=0)
    for sides in ((left * 1e30, right), (left, right * 1e30)):
        wild = floors.floor_of_grams(*sides, plain=torch.zeros(1), tokens=7, widths=(3, 5))
        assert wild.tolist() == [torch.inf]


def test_the_spread_bounds_the_squared_norm():
    inputs, grads = _sides(5)
    expected = inputs.double().square().sum((1, 2)) * grads.double().square().sum((1, 2))
    torch.testing.assert_close(OuterProductGradient(inputs, grads).spread(), expected, rtol=1e-6, atol=0)


def test_exact_squares_of_units_that_multiply_nothing_are_zero():
    inputs, grads = _sides(3)
    grads[1], inputs[2] = 0, 0
    grads[3, 0], inputs[3, 1:] = 0, 0
    use, whole = OuterProductGradient(inputs, grads), _products(inputs, grads)
    found = use.exact_squares(torch.arange(U))
    torch.testing.assert_close(found, whole.flatten(1).square().sum(dim=1), rtol=1e-12, atol=0)
    assert use.exact_squares(torch.tensor([1, 2])).tolist() == [0.0, 0.0]


# --- products ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "right"), [(3, 5), (4, 4), (5, 3)])
def test_products_of_half_precision_are_as_exact_as_fp32(left, right):
    a, b = torch.randn(U, 9, left).bfloat16(), torch.randn(U, 9, right).bfloat16()
    factors = torch.rand(U) + 0.5
    expected = torch.einsum("u,utm,utn->mn", factors.double(), a.double(), b.double())
    found = scaled_product(a, b, factors)
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    product = bmm(a.transpose(1, 2), b)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), a.double().transpose(1, 2) @ b.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("left", "right"), [(3, 5), (4, 4), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_where_products_of_half_precision_add_up_in_fp32_no_digit_of_a_factor_is_lost(
    left, right, dtype, monkeypatch
):
    """As on a GPU, in the place of whose products are those of a CPU: the same numbers, rounded in fp32."""
    monkeypatch.setattr(exact, "_native", lambda one, other: one.dtype == other.dtype)
    for name in ("mm", "bmm"):
        product = getattr(torch, name)

        def in_fp32(one, other, *, out_dtype=None, product=product):
            assert one.dtype == other.dtype
            return product(one.float(), other.float())

        monkeypatch.setattr(torch, name, in_fp32)
    a, b = torch.randn(U, 9, left).to(dtype), torch.randn(U, 9, right).to(dtype)
    factors = torch.rand(U) + 0.5
    found = scaled_product(a, b, factors)
    expected = torch.einsum("u,utm,utn->mn", factors.double(), a.double(), b.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(
        bmm(a.transpose(1, 2), b).double(), a.double().transpose(1, 2) @ b.double(), rtol=0, atol=1e-5
    )


def test_kept_sums_leave_out_what_counts_for_nothing_and_multiply_wild_factors_in_fp64():
    gradients = torch.randn(U, 2, 3)
    gradients[0], gradients[1] = torch.nan, torch.inf
    gradients[2] *= 1e-40
    gradients[3] *= 1e30
    factors = torch.tensor([0.0, 0.0, 1e40, 1e-30, 1.0, 0.5, 1e-40], dtype=torch.float64)
    expected = torch.tensordot(factors[2:], gradients[2:].double(), dims=1)
    torch.testing.assert_close(kept_sum(gradients, factors).double(), expected, rtol=1e-5, atol=1e-6)
    for factor in (1e-25, 1e25):  # and at the edge between the two ways
        found = kept_sum(gradients[4:5], torch.tensor([factor], dtype=torch.float64))
        torch.testing.assert_close(found.double(), gradients[4].double() * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_exact_products_switch_off_and_back_what_the_user_has_set(gradients, autocast):
    weight = torch.randn(3, 3, requires_grad=True)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", enabled=autocast):
        for _ in range(2):
            with exact_products():
                product = weight @ weight
                assert (product.dtype, product.requires_grad) == (torch.float32, False)
                assert not torch.is_autocast_enabled("cpu")
            assert torch.is_grad_enabled() == gradients
            assert torch.is_autocast_enabled("cpu") == autocast
