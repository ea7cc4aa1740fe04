"""What every engine promises, whatever the layers."""

import copy

import pytest
import torch
from engines import distance, run, total_norm
from follow_steps import sites_of
from torch import Tensor, nn

from lightning_dp.privacy.clipping._book_keeping import layer_ops, per_unit_gradient
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Automatic, Flat, PerGroup, PerLayer
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised

ALL = pytest.mark.parametrize("engine", [BookKeeping, Materialised, Loop])
FAST = pytest.mark.parametrize("engine", [BookKeeping, Materialised])
FUNCTIONS = [
    Flat(),
    Automatic(stability=0.1),
    PerLayer(),
    PerGroup(groups={"first": [r"^0\."], "norm": [r"^2\."]}, shares={"norm": 3.0}),
]


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))


def _rows(out: Tensor) -> Tensor:
    return out.flatten(1).square().sum(dim=1)


@ALL
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: type(f).__name__)
def test_no_unit_contributes_more_than_the_bound(engine, function):
    model, x = _model(), torch.randn(8, 5, 6) * 10
    for unit in range(4):
        weights = torch.zeros(4)
        weights[unit] = 1
        _, sums = run(
            engine(),
            model,
            lambda: _rows(model(x)),
            units=4,
            rows_per_unit=2,
            weights=weights,
            function=function,
            max_grad_norm=0.3,
        )
        assert total_norm(sums) <= 0.3 * (1 + 1e-6 if engine is not BookKeeping else 1 + 1e-5)


@FAST
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: type(f).__name__)
def test_functions_agree_with_the_oracle(engine, function):
    model, x = _model(), torch.randn(8, 5, 6)
    config = {"units": 4, "rows_per_unit": 2, "function": function}
    oracle = run(Loop(), model, lambda: _rows(model(x)), **config)
    assert distance(run(engine(), model, lambda: _rows(model(x)), **config), oracle) <= 1e-5


@ALL
def test_unclipped_sum_is_the_ordinary_gradient(engine):
    model, x = _model(), torch.randn(6, 5, 6)
    _, sums = run(engine(), model, lambda: _rows(model(x)), units=3, rows_per_unit=2, max_grad_norm=1e9)
    _rows(model(x)).mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(sums[name] / 3, parameter.grad, rtol=1e-4, atol=1e-5)


@ALL
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_unit_that_is_not_finite_contributes_nothing(engine, bad):
    model, x = _model(), torch.randn(8, 5, 6)
    spoilt = x.clone()
    spoilt[2:4, 1] = bad
    without = torch.tensor([1.0, 0.0, 1.0, 1.0])
    norms, sums = run(engine(), model, lambda: _rows(model(spoilt)), units=4, rows_per_unit=2)
    _, expected = run(engine(), model, lambda: _rows(model(x)), units=4, rows_per_unit=2, weights=without)
    if norms[1].isfinite():  # 1e30 may survive normalisation: then it is clipped like any other
        assert total_norm({n: sums[n] - expected[n] for n in sums}) <= 0.05 * (1 + 1e-4)
        return
    assert norms.isfinite().tolist() == [True, False, True, True]
    for name in sums:
        torch.testing.assert_close(sums[name], expected[name], rtol=1e-5, atol=1e-7)


@ALL
def test_huge_unit_added_or_removed_changes_at_most_the_bound(engine):
    """Clipping after averaging would fail here."""
    model, x = _model(), torch.randn(4, 5, 6)
    x[3] *= 1e4
    _, with_it = run(engine(), model, lambda: _rows(model(x)), units=4)
    _, without = run(engine(), model, lambda: _rows(model(x)), units=4, weights=torch.tensor([1.0, 1, 1, 0]))
    assert total_norm({n: with_it[n] - without[n] for n in with_it}) <= 0.05 * (1 + 1e-5)


@ALL
def test_an_empty_batch_gives_exact_zeros(engine):
    model, x = _model(), torch.randn(3, 5, 6)
    norms, sums = run(engine(), model, lambda: _rows(model(x)), units=3, weights=torch.zeros(3))
    assert norms.shape == (3,)
    assert all(s.eq(0).all() for s in sums.values())


@ALL
def test_padding_that_is_not_finite_contributes_nothing(engine):
    model, x = _model(), torch.randn(3, 5, 6)
    x[2] = float("nan")
    _, sums = run(engine(), model, lambda: _rows(model(x)), units=3, weights=torch.tensor([1.0, 1.0, 0.0]))
    assert all(s.isfinite().all() for s in sums.values())


@ALL
def test_loss_scale_is_undone(engine):
    model, x = _model(), torch.randn(4, 5, 6)
    plain = run(engine(), model, lambda: _rows(model(x)), units=4)
    for scale in (1024.0, 1e-6):
        scaled = run(engine(), model, lambda: _rows(model(x)), units=4, loss_scale=scale)
        assert distance(scaled, plain) <= 1e-5


@ALL
def test_sums_run_over_physical_batches(engine):
    model, x = _model(), torch.randn(6, 5, 6)
    whole = run(engine(), model, lambda: _rows(model(x)), units=6)
    parts = engine()
    parts.know(sites_of(model, lambda: _rows(model(x)), units=6))
    parts.attach(model, function=Flat(), max_grad_norm=0.05)
    for part, weights in ((x[:4], torch.ones(4)), (x[2:], torch.tensor([0.0, 0.0, 1.0, 1.0]))):
        parts.expect(unit_weights=weights, rows_per_unit=1)
        _rows(model(part)).mean().backward()
        norms = parts.collect()
        assert all(p.grad is None for p in model.parameters()) or engine is not BookKeeping
    found = parts.take()
    again = parts.take()
    parts.detach()
    torch.testing.assert_close(norms[2:], whole[0][4:])
    for name in found:
        torch.testing.assert_close(found[name], whole[1][name], rtol=1e-5, atol=1e-7)
        assert again[name].eq(0).all()


def _state(model: nn.Module) -> list[object]:
    """Everything hung onto modules and parameters."""
    return [
        (
            sorted(module.__dict__),
            [len(getattr(module, k)) for k in module.__dict__ if k.endswith("hooks")],
            type(module),
            [id(p) for p in module._parameters.values()],
            [
                sorted(vars(p)) if hasattr(p, "__dict__") else []
                for p in module._parameters.values()
                if p is not None
            ],
            [len(p._backward_hooks or {}) for p in module._parameters.values() if p is not None],
        )
        for module in model.modules()
    ]


class _Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        out = self.layer(x * self.scale)
        if fail:
            raise KeyError("half-way")
        return out


@ALL
def test_detach_and_failure_half_way_leave_the_module_as_it_was(engine):
    model, x = _Failing(), torch.randn(4, 6)
    before = _state(model)
    run(engine(), model, lambda: _rows(model(x)), units=4)
    assert _state(model) == before
    with pytest.raises(KeyError):
        run(engine(), model, lambda: _rows(model(x, fail=True)), units=4)
    assert _state(model) == before
    attached = engine()
    attached.attach(model, function=Flat(), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="attached already"):
        attached.attach(model, function=Flat(), max_grad_norm=1.0)
    attached.detach()
    attached.detach()
    assert _state(model) == before
    model.zero_grad()
    _rows(model(x)).mean().backward()
    assert model.scale.grad is not None


@ALL
def test_ordinary_use_between_batches(engine):
    """Validation and gradients outside of expect … collect are the user's own."""
    model, x = _model(), torch.randn(4, 5, 6)
    attached = engine()
    attached.know(sites_of(model, lambda: _rows(model(x)), units=4))
    attached.attach(model, function=Flat(), max_grad_norm=1.0)
    _rows(model(x[:3])).mean().backward()
    grad = model[0].weight.grad
    attached.expect(unit_weights=torch.ones(4), rows_per_unit=1)
    assert model[0].weight.grad is None
    _rows(model(x)).mean().backward()
    attached.collect()
    attached.detach()
    _rows(model(x[:3])).mean().backward()
    assert grad is not None
    assert model[0].weight.grad is not None


def test_a_copy_made_while_attached_is_independent():
    model, x = _Failing(), torch.randn(4, 6)
    attached = BookKeeping()
    attached.know(sites_of(model, lambda: _rows(model(x)), units=4))
    attached.attach(model, function=Flat(), max_grad_norm=1.0)
    copied = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        copied.layer.weight.zero_()
        copied.layer.bias.zero_()
    assert copied(x).eq(0).all()
    attached.expect(unit_weights=torch.ones(4), rows_per_unit=1)
    assert copied(x).eq(0).all()
    (_rows(model(x)) + _rows(copied(x))).mean().backward()
    assert attached.collect().isfinite().all()
    attached.detach()


def test_ordinary_weight_gradients_are_never_formed():
    model, x = _model(), torch.randn(4, 5, 6)
    run(BookKeeping(), model, lambda: _rows(model(x)), units=4)
    assert all(p.grad is None for p in model.parameters())


def test_frozen_modules_are_not_touched():
    model = _model()
    model[0].requires_grad_(False)
    attached = BookKeeping()
    attached.attach(model, function=Flat(), max_grad_norm=1.0)
    assert "forward" not in model[0].__dict__
    assert "forward" in model[3].__dict__
    attached.detach()


@ALL
def test_arguments_are_checked(engine):
    model = _model()
    with pytest.raises(ValueError, match="max_grad_norm"):
        engine().attach(model, function=Flat(), max_grad_norm=0.0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        engine().attach(_model().requires_grad_(False), function=Flat(), max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match="attach"):
        engine().take()
    attached = engine()
    attached.attach(model, function=Flat(), max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match="expect"):
        attached.collect()
    with pytest.raises(ValueError, match="rows_per_unit"):
        attached.expect(unit_weights=torch.ones(2), rows_per_unit=0)
    attached.detach()


def test_group_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="matches no trainable parameter"):
        Loop().attach(_model(), function=PerGroup(groups={"typo": ["contidion"]}), max_grad_norm=1.0)
    with pytest.raises(ValueError, match="shares"):
        PerGroup(groups={"a": ["x"]}, shares={"b": 1.0})


class _Broken(Flat):
    """A clipping function that returns what it is told."""

    def __init__(self, change) -> None:
        self._change = change

    def factors(self, norms, *, max_grad_norm):
        return self._change(super().factors(norms, max_grad_norm=max_grad_norm))


@ALL
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.ones_like, "lets one unit contribute"),
        (lambda factors: factors * 1.0001, "lets one unit contribute"),
        (torch.neg, "negative"),
        (lambda factors: factors * torch.tensor(float("nan")), "not finite"),
        (lambda factors: factors / 0, "not finite"),
        (lambda factors: factors[:, 0], "of shape"),
        (lambda factors: factors[:1], "of shape"),
        (lambda factors: factors.repeat(1, 2) / 2, "of shape"),
        (lambda factors: 0.5, "float"),
    ],
)
def test_a_clipping_function_that_breaks_its_contract_is_refused(engine, change, message):
    model, x = _model(), torch.randn(4, 5, 6)
    with pytest.raises(RuntimeError, match=rf"_Broken\.factors.*{message}"):
        run(engine(), model, lambda: _rows(model(x)), units=4, function=_Broken(change))


class _OneLayerFree(PerLayer):
    def factors(self, norms, *, max_grad_norm):
        factors = super().factors(norms, max_grad_norm=max_grad_norm)
        factors[:, -1] = 1.0
        return factors


@ALL
def test_a_clipping_function_that_forgets_one_group_is_refused(engine):
    model, x = _model(), torch.randn(4, 5, 6)
    with pytest.raises(RuntimeError, match=r"_OneLayerFree\.factors lets one unit contribute"):
        run(engine(), model, lambda: _rows(model(x)), units=4, function=_OneLayerFree())


@ALL
def test_weights_are_finite_and_not_negative(engine):
    attached = engine()
    attached.attach(_model(), function=Flat(), max_grad_norm=1.0)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="unit_weights"):
            attached.expect(unit_weights=torch.tensor([1.0, bad]), rows_per_unit=1)
    attached.detach()


@ALL
def test_pending_says_whether_sums_wait_to_be_taken(engine):
    model, x = _model(), torch.randn(4, 5, 6)
    attached = engine()
    assert not attached.pending
    attached.know(sites_of(model, lambda: _rows(model(x)), units=4))
    attached.attach(model, function=Flat(), max_grad_norm=1.0)
    for _ in range(2):
        attached.expect(unit_weights=torch.ones(4), rows_per_unit=1)
        _rows(model(x)).mean().backward()
        attached.collect()
        assert attached.pending
    attached.take()
    assert not attached.pending
    attached.expect(unit_weights=torch.ones(4), rows_per_unit=1)
    torch.zeros((), requires_grad=True).backward()
    attached.collect()
    assert attached.pending, "a batch that reached no parameter is a batch"
    attached.detach()
    assert not attached.pending


FAULTS = {
    "ghost norm of A alone": (
        per_unit_gradient.OuterProductGradient,
        "_ghost",
        lambda self: self.inputs.float().square().sum((1, 2)),
    ),
    "bias summed over rows": (layer_ops, "_bias_use", None),
    "kept norms halved": (
        per_unit_gradient.KeptGradient,
        "squared_norms",
        lambda self: self._gradients.flatten(1).norm(dim=1),
    ),
    "factors forgotten": (
        per_unit_gradient.OuterProductGradient,
        "weighted_sum",
        lambda self, factors: torch.einsum("utp,utd->pd", self.grads, self.inputs),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, monkeypatch):
    """The comparison with the oracle must notice a wrong rule."""
    holder, attribute, wrong = FAULTS[fault]
    if fault == "bias summed over rows":

        def wrong(record, grad, where):
            return per_unit_gradient.KeptGradient(
                grad.flatten(0, -2).sum(dim=0).expand(record.sums.units, -1).contiguous()
            )

    monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "method", lambda self: "ghost")
    model, x = _model(), torch.randn(4, 5, 6)
    oracle = run(Loop(), model, lambda: _rows(model(x)), units=4)
    assert distance(run(BookKeeping(), model, lambda: _rows(model(x)), units=4), oracle) <= 1e-5
    monkeypatch.setattr(holder, attribute, wrong)
    assert distance(run(BookKeeping(), model, lambda: _rows(model(x)), units=4), oracle) > 1e-2


@pytest.mark.parametrize("method", ["ghost", "direct", "keep"])
def test_every_way_to_a_norm_gives_the_same(method, monkeypatch):
    monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "method", lambda self: method)
    monkeypatch.setattr(per_unit_gradient, "_CHUNK_BYTES", 4 * 64)
    model, x = _model(), torch.randn(4, 5, 6)
    oracle = run(Loop(), model, lambda: _rows(model(x)), units=4)
    assert distance(run(BookKeeping(), model, lambda: _rows(model(x)), units=4), oracle) <= 1e-5
