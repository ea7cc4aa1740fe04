"""Each trap of the field, by name: handled exactly, or refused in words."""

import copy

import pytest
import torch
import torch.nn.functional as F
from engines import compare, distance, run, total_norm
from follow_steps import sites_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_dp.privacy.clipping._book_keeping import per_unit_gradient
from lightning_dp.privacy.clipping._book_keeping.backward_record import BackwardRecord
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.clipping.sites import UnknownUse
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.rows import UnitsMixed

TOLERANCE = 1e-5
ALL = pytest.mark.parametrize("engine", [BookKeeping, Materialised, Loop])
FAST = pytest.mark.parametrize("engine", [BookKeeping, Materialised])


def _rows(out: Tensor) -> Tensor:
    return out.flatten(1).square().mean(dim=1)


@ALL
def test_folded_rows_are_counted_by_unit(engine):
    """(B·T, d): Opacus's hooks silently clip rows instead of samples."""

    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    model, x = Folding(), torch.randn(4, 5, 3)
    assert compare(engine(), model, lambda: _rows(model(x)), units=4) <= TOLERANCE


@ALL
def test_a_batch_that_can_not_have_its_units_is_refused(engine):
    model, x = nn.Linear(3, 2), torch.randn(6, 3)
    attached = engine()
    attached.know(sites_of(model, lambda: _rows(model(x)), units=6))
    attached.attach(model, function=Flat(), max_grad_norm=1.0)

    def step() -> None:
        attached.expect(unit_weights=torch.ones(4), rows_per_unit=1)
        _rows(model(x)).mean().backward()
        attached.collect()

    with pytest.raises(RuntimeError):
        step()
    attached.detach()


@ALL
def test_rows_in_the_second_dimension(engine):
    model, x = nn.Linear(3, 2), torch.randn(4, 5, 3)

    def losses() -> Tensor:
        return model(x.transpose(0, 1)).square().mean(dim=(0, 2))

    assert compare(engine(), model, losses, units=4) <= TOLERANCE


@ALL
def test_uses_that_no_step_showed_are_refused(engine):
    model, x = nn.Linear(3, 2), torch.randn(6, 3)
    attached = engine()
    attached.attach(model, function=Flat(), max_grad_norm=1.0)
    attached.expect(unit_weights=torch.ones(6), rows_per_unit=1)
    with pytest.raises(UnknownUse, match="followed"):
        _rows(model(x)).mean().backward()
    attached.detach()


@FAST
def test_order_of_definition_does_not_matter(engine):
    """fastDP clips in the backward of the first-defined layer, whichever runs first."""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.condition = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            condition = self.condition(y)
            return self.last(self.first(x).tanh() * condition)

    model, x, y = Backwards(), torch.randn(4, 3), torch.randn(4, 2)
    assert compare(engine(), model, lambda: _rows(model(x, y)), units=4) <= TOLERANCE


@FAST
def test_bare_parameters_at_the_root_with_two_inputs(engine):
    """A DiT's position embedding fails in every mode of Opacus."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 5, 3))
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.inner(x + self.position) * time[:, None, None]

    model, x, time = Root(), torch.randn(4, 5, 3), torch.rand(4)
    assert compare(engine(), model, lambda: _rows(model(x, time)), units=4) <= TOLERANCE


@pytest.mark.parametrize("leading", [(), (1,)])
@pytest.mark.parametrize("tokens", [4, 5])
def test_embedding_of_arange_with_batch_one(leading, tokens):
    """Positions looked up once for all rows; also with as many tokens as rows."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.inner = nn.Embedding(6, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            index = torch.arange(tokens).view(*leading, tokens)
            return self.inner(x + self.positions(index)).tanh()

    model, x = Positions(), torch.randn(4, tokens, 3)
    assert compare(BookKeeping(), model, lambda: _rows(model(x)), units=4) <= TOLERANCE


def test_labels_that_look_like_positions():
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.label, self.inner = nn.Embedding(6, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x + self.label(y)).tanh()

    model, x, y = Labelled(), torch.randn(4, 3), torch.arange(4)
    assert compare(BookKeeping(), model, lambda: _rows(model(x, y)), units=4) <= TOLERANCE


@FAST
def test_keyword_only_calls(engine):
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.layer(input=x)

    model, x = Keyword(), torch.randn(4, 5, 3)
    assert compare(engine(), model, lambda: _rows(model(x=x)), units=4) <= TOLERANCE


@ALL
def test_unused_layers_get_zeros(engine):
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    x = torch.randn(4, 3)
    _, sums = run(engine(), model, lambda: _rows(model["used"](x)), units=4)
    assert set(sums) == {n for n, _ in model.named_parameters()}
    assert sums["unused.weight"].eq(0).all()
    assert sums["used.weight"].ne(0).any()


@FAST
def test_trainable_modules_with_buffers(engine):
    class Buffered(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.calls

    model, x = Buffered(), torch.randn(4, 5, 3)
    assert compare(engine(), model, lambda: _rows(model(x)), units=4) <= TOLERANCE


@FAST
def test_reused_and_tied_layers(engine):
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.twice, self.head = nn.Embedding(6, 3), nn.Linear(3, 3), nn.Linear(3, 6)
            self.head.weight = self.embedding.weight

        def forward(self, index: Tensor) -> Tensor:
            return self.head(self.twice(self.twice(self.embedding(index)).tanh()[:, :3]))

    model, index = Reused(), torch.randint(0, 6, (4, 5))
    assert compare(engine(), model, lambda: _rows(model(index)), units=2, rows_per_unit=2) <= TOLERANCE


def test_planted_norms_that_forget_that_two_uses_are_one_parameter(monkeypatch):
    """Opacus #413: the norm of a sum is not that of its parts."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(x).tanh())

    def apart(self, name: str) -> Tensor:
        return torch.stack([use.squared_norms() for use in self.uses[name]]).sum(dim=0)

    model, x = Twice(), torch.randn(4, 5, 3)
    assert compare(BookKeeping(), model, lambda: _rows(model(x)), units=4) <= TOLERANCE
    monkeypatch.setattr(BackwardRecord, "squared_norms", apart)
    assert compare(BookKeeping(), model, lambda: _rows(model(x)), units=4) > 1e-2


@FAST
def test_linear_on_four_dimensions(engine):
    model, x = nn.Linear(3, 2), torch.randn(4, 2, 5, 3)
    assert compare(engine(), model, lambda: _rows(model(x).sin()), units=4) <= TOLERANCE


def _cancelling(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer and tokens in pairs whose gradients cancel but for a small rest."""
    layer = nn.Linear(64, 64, bias=False)
    half = torch.randn(4, 8, 64)
    x = torch.cat([half, half + 1e-3 * torch.randn_like(half)], dim=1)
    head = torch.randn(4, 8, 64) * 1e3
    return layer, x.to(dtype), torch.cat([head, -head], dim=1)


@ALL
@pytest.mark.parametrize("method", ["ghost", "direct", "keep"])
def test_bf16_gram_matrices_of_cancelling_tokens(engine, method, monkeypatch):
    """Ghost norms under autocast gave one "clipped" sample 110 times the bound."""
    monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "method", lambda self: method)
    layer, x, head = _cancelling(torch.float32)

    for unit in range(4):

        def losses(unit: int = unit) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(x)
            return (out.float() * head).flatten(1).sum(dim=1)

        alone = torch.zeros(4)
        alone[unit] = 1
        _, sums = run(engine(), layer, losses, units=4, max_grad_norm=1.0, weights=alone)
        assert total_norm(sums) <= 1 + 1e-3


@pytest.mark.parametrize("method", ["ghost", "direct", "keep"])
def test_fp32_gram_matrices_of_cancelling_tokens(method, monkeypatch):
    monkeypatch.setattr(per_unit_gradient.OuterProductGradient, "method", lambda self: method)
    layer, x, head = _cancelling(torch.float32)
    norms, sums = run(
        BookKeeping(),
        layer,
        lambda: (layer(x) * head).flatten(1).sum(dim=1),
        units=4,
        max_grad_norm=1.0,
        weights=torch.tensor([0.0, 1.0, 0.0, 0.0]),
    )
    exact = torch.einsum("utp,utd->upd", head.double(), x.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms.double(), exact, rtol=1e-4, atol=0)
    assert total_norm(sums) <= 1 + 1e-5


@FAST
@pytest.mark.parametrize("name", ["linear", "norm", "convolution", "attention", "embedding"])
def test_autocast_never_exceeds_the_bound(engine, name):
    layers = {
        "linear": (nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), torch.randn(6, 5, 8)),
        "norm": (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8)), torch.randn(6, 5, 8)),
        "convolution": (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), torch.randn(6, 2, 5, 5)),
        "attention": (nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True), torch.randn(6, 5, 8)),
        "embedding": (nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4)), torch.randint(0, 5, (6, 5))),
    }
    model, x = layers[name]

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        return (out.float() - 1).flatten(1).square().sum(dim=1)

    exact, _ = run(Loop(), model, lambda: (model(x).float() - 1).flatten(1).square().sum(dim=1), units=6)
    for unit in range(6):
        alone = torch.zeros(6)
        alone[unit] = 1
        norms, sums = run(engine(), model, losses, units=6, max_grad_norm=0.1, weights=alone)
        assert all(s.dtype == torch.float32 for s in sums.values())
        assert total_norm(sums) <= 0.1 * (1 + 1e-3)
        torch.testing.assert_close(norms, exact, rtol=0.1, atol=0)


def _largest_contribution(*, max_grad_norm: float) -> float:
    """Of 32 units that are clipped, the one that contributes most, in units of the bound."""
    model, x = nn.Linear(16, 8), torch.randn(32, 3, 16)
    found = []
    for unit in range(32):
        alone = torch.zeros(32)
        alone[unit] = 1
        options = {"units": 32, "weights": alone, "max_grad_norm": max_grad_norm}
        _, sums = run(BookKeeping(), model, lambda: _rows(model(x)), **options)
        found.append(total_norm(sums) / max_grad_norm)
    return max(found)


def test_planted_norms_of_bf16_exceed_the_bound(monkeypatch):
    assert _largest_contribution(max_grad_norm=0.1) <= 1 + 1e-6
    clip_coefficients = UnitSums.clip_coefficients

    def in_bf16(self, squared_norms):
        rounded = {name: square.bfloat16().float() for name, square in squared_norms.items()}
        return clip_coefficients(self, rounded)

    monkeypatch.setattr(UnitSums, "clip_coefficients", in_bf16)
    assert _largest_contribution(max_grad_norm=0.1) > 1 + 1e-4


class _Stack(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.start = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4)) for _ in range(3)
        )
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x * self.scale


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    model, x = _Stack(reentrant), torch.randn(4, 5, 3)
    plain = _Stack(None)
    plain.load_state_dict(model.state_dict())
    found = run(BookKeeping(), model, lambda: _rows(model(x)), units=4)
    oracle = run(Loop(), plain, lambda: _rows(plain(x)), units=4)
    assert distance(found, oracle) <= TOLERANCE


@pytest.mark.parametrize("warm", [False, True])
def test_torch_compile(warm):
    plain = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    model = torch.compile(plain, backend="eager")
    x = torch.randn(4, 5, 3)
    if warm:
        _rows(model(x)).mean().backward()
    norms, sums = run(BookKeeping(), model, lambda: _rows(model(x)), units=4)
    oracle = run(Loop(), plain, lambda: _rows(plain(x)), units=4)
    assert distance((norms, {n.removeprefix("_orig_mod."): s for n, s in sums.items()}), oracle) <= TOLERANCE
    _rows(model(x)).mean().backward()
    assert plain[0].weight.grad is not None


class _LightningLike(nn.Module):
    """Its forward is never called; children run in training_step, beside a sampler and a frozen copy."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.net = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("schedule", torch.rand(4))

    def training_step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.net(torch.zeros(7, 4))  # a preview, with rows of its own
        h = self.encoder(x)
        return _rows(self.net(h * self.schedule)) + _rows(self.ema(h))


@FAST
def test_lightning_root_no_grad_calls_and_frozen_copies(engine):
    model, x = _LightningLike(), torch.randn(4, 5, 3)
    assert compare(engine(), model, lambda: model.training_step(x), units=4) <= TOLERANCE


@ALL
def test_bare_parameter_outside_of_forwards_and_of_an_announced_step_is_refused(engine):
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.temperature = nn.Linear(3, 2), nn.Parameter(torch.ones(()))

        def training_step(self, x: Tensor) -> Tensor:
            return _rows(self.net(x) * self.temperature)

    model, x = Root(), torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="temperature"):
        run(engine(), model, lambda: model.training_step(x), units=4)


def test_unsupported_layers_raise_on_attach_with_path_and_way_out():
    model = nn.ModuleDict({"net": nn.ModuleDict({"norm": nn.BatchNorm2d(3)})})
    with pytest.raises(ValueError, match=r"net\.norm.*GroupNorm"):
        BookKeeping().attach(model, function=Flat(), max_grad_norm=1.0)
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_batch_norm_is_refused_where_it_mixes():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3)
    with pytest.raises(UnitsMixed, match="batch_norm"):
        run(Loop(), model, lambda: _rows(model(x)), units=4)


def test_dropout_is_exact_where_nothing_is_replayed():
    model, x = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)), torch.randn(4, 5, 3)
    _, sums = run(
        BookKeeping(), model, lambda: torch.manual_seed(1) and _rows(model(x)), units=4, max_grad_norm=1e6
    )
    torch.manual_seed(1)
    _rows(model(x)).mean().backward()
    torch.testing.assert_close(sums["0.weight"] / 4, model[0].weight.grad)
    with pytest.raises(RuntimeError, match="dropout"):
        run(Loop(), model, lambda: _rows(model(x)), units=4)


def test_functional_weights_of_a_child():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.bias = nn.Embedding(6, 3), nn.Parameter(torch.randn(6))

        def forward(self, index: Tensor) -> Tensor:
            return F.linear(self.embedding(index).tanh(), self.embedding.weight, self.bias)

    model, index = Tied(), torch.randint(0, 6, (4, 5))
    assert compare(BookKeeping(), model, lambda: _rows(model(index)), units=4) <= TOLERANCE


def test_a_module_run_per_unit_and_called_on_a_constant_too_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.GRU(3, 4, batch_first=True)
            self.register_buffer("table", torch.randn(6, 5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[0] + self.net(self.table)[0].mean(dim=0)

    model, x = Twice(), torch.randn(6, 5, 3)
    with pytest.raises(UnknownUse, match="give each use a module of its own"):
        sites_of(model, lambda: _rows(model(x)), units=6)
