"""Preflight on plain modules: each planted fault is named with its place, and honest modules pass."""

import copy
import gc
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_dp.privacy.batch_layout import BatchLayout, NoLayout
from lightning_dp.privacy.batch_trees import leaves, length
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Automatic, Flat, PerGroup, PerLayer
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.draws import RecordedRandomness, RowAlignedRandomness
from lightning_dp.privacy.preflight import (
    CODES,
    NUM_UNITS,
    Finding,
    MadeUpUnits,
    TrainingStep,
    Trial,
    check_accept,
    find_in_layers,
    inspect_step,
    settle,
)
from lightning_dp.privacy.preflight.copies import copied
from lightning_dp.privacy.preflight.coupling import couples
from lightning_dp.privacy.preflight.values import large


class Fit(nn.Module):
    """A small net and a loss of its own; what a test plants overrides one of its two methods."""

    rows_per_example = 1

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def errors(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) losses."""
        return (self.net(x).flatten(1).mean(dim=1) - y).square()

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        return self.errors(x, y).mean()


def batch(rows_per_unit: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = NUM_UNITS * rows_per_unit
    return [torch.randn(rows, *shape, generator=generator) for shape in ((4,), ())]


def findings(
    module: nn.Module,
    *,
    made_up=None,
    loss=lambda module, rows: module.step(*rows),
    rows_per_unit: int = 1,
    engine: ClippingEngine | None = None,
    function=None,
) -> list[Finding]:
    torch.manual_seed(0)
    for parameter in module.parameters():  # the same module in every run of a test
        if parameter.ne(0).any():
            nn.init.normal_(parameter, std=0.4)
    made_up = batch(rows_per_unit) if made_up is None else made_up
    return inspect_step(
        Trial(
            step=TrainingStep(module, loss=loss, device=torch.device("cpu")),
            units=made_up_of(made_up, rows_per_unit=rows_per_unit),
            rows_per_unit=rows_per_unit * getattr(module, "rows_per_example", 1),
            engine=engine or BookKeeping(),
            function=function or Flat(),
        )
    )


def made_up_of(made_up, *, rows_per_unit: int) -> MadeUpUnits:
    """Here all that has as many entries as there are units or rows is the units'."""
    sizes = [length(leaf) for leaf in leaves(made_up)]
    layout = BatchLayout(
        [size // NUM_UNITS if size in (NUM_UNITS, NUM_UNITS * rows_per_unit) else 0 for size in sizes]
    )
    return MadeUpUnits(made_up, layout=layout, num_units=NUM_UNITS, rows_per_unit=rows_per_unit)


def said(module: nn.Module, **options) -> list[tuple[str, str]]:
    return [(finding.code, finding.place) for finding in findings(module, **options)]


# --- P7: terms across units -----------------------------------------------------------------------------


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class AcrossTheBatch(Fit):
    """Attention whose sequence is the batch: batch_first forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1)

    def errors(self, x, y):
        x = x[:, None, :].expand(-1, 2, -1)
        return super().errors(self.attention(x, x, x, need_weights=False)[0][:, 0], y)


class Contrastive(Fit):
    def step(self, x, y):
        z = F.normalize(self.net[0](x), dim=1)
        return F.cross_entropy(z @ z.T / 0.5, torch.arange(len(z)))


class CountedInTheBatch(Fit):
    """As CSDI's loss: divided by how many targets the whole batch has."""

    def step(self, x, y):
        told = x.isnan().logical_not().float()
        error = (self.net(x.nan_to_num(0.0)) - y[:, None]).square()
        return (error * told).sum() / told.sum()


class WeighedInTheBatch(Fit):
    def step(self, x, y):
        weight = torch.softmax(self.errors(x, y).detach(), dim=0)
        return (weight * self.errors(x, y)).sum()


class HardestOnly(Fit):
    def step(self, x, y):
        errors = self.errors(x, y)
        return (errors * (errors >= errors.median())).mean()


class Mixed(Fit):
    """Mixup with another row, found by whichever of torch's ways to shuffle."""

    def __init__(self, shuffle) -> None:
        super().__init__()
        self.shuffle = shuffle

    def step(self, x, y):
        other = self.shuffle(len(x))
        return self.errors(0.7 * x + 0.3 * x[other], y).mean()


class SpreadOverTheBatch(Fit):
    """Low-discrepancy times: what a row draws depends on how many others there are."""

    def step(self, x, y):
        time = (torch.arange(len(x)) + torch.rand(1)) / len(x)
        return (self.errors(x, y) * (1 + time)).mean()


class BehindAGate(Fit):
    """At the start gate and head are 0, and no gradient shows what lies behind the two."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 1))
        self.branch, self.gate = nn.Sequential(nn.Linear(4, 4), Centred()), nn.Linear(4, 4)
        for parameter in (*self.gate.parameters(), *self.net.parameters()):
            nn.init.zeros_(parameter)

    def errors(self, x, y):
        return super().errors(x + self.gate(self.branch(x)), y)


@pytest.mark.parametrize(
    ("module", "place"),
    [
        (Fit(nn.Sequential(nn.Linear(4, 8), Centred(), nn.Linear(8, 1))), "'net.1'"),
        (Fit(nn.Sequential(nn.Linear(4, 8), nn.Softmax(dim=0), nn.Linear(8, 1))), "'net.1'"),
        (AcrossTheBatch(), "'attention'"),
        (Contrastive(), "training_step"),
        (CountedInTheBatch(), "training_step"),
        (WeighedInTheBatch(), "training_step"),
        (HardestOnly(), "training_step"),
        (Mixed(torch.randperm), "training_step"),
        (Mixed(lambda n: torch.rand(n).argsort()), "training_step"),
        (SpreadOverTheBatch(), "training_step"),
        (BehindAGate(), "'branch.1'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_units_that_see_each_other(module, place):
    assert said(module) == [("coupling", place)]


# --- losses that don't average --------------------------------------------------------------------------


class Summed(Fit):
    def __init__(self, divisor=lambda rows: 1.0) -> None:
        super().__init__()
        self.divisor = divisor

    def step(self, x, y):
        return self.errors(x, y).sum() / self.divisor(len(x))


@pytest.mark.parametrize("divisor", [lambda rows: 1, lambda rows: 64, lambda rows: rows**0.5])
def test_losses_that_are_no_mean(divisor):
    (finding,) = findings(Summed(divisor))
    assert finding.code == "not-a-mean"
    assert "depends on the size of the batch" in finding.problem
    assert findings(Summed(lambda rows: 2 * rows)) == [], "half a mean is one of half the losses"


# --- P8: memory -----------------------------------------------------------------------------------------


class RunningMean(Fit):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def step(self, x, y):
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(dim=0))
        return super().step(x, y)


class Codebook(Fit):
    """Learnt by averaging, beside the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(2, 4), requires_grad=False)

    def step(self, x, y):
        self.codes.lerp_(x[:2], 0.1) if len(x) > 1 else None
        return super().step(x, y)


class RunningMeanInAnAttribute(Fit):
    mean: float | Tensor = 0.0

    def step(self, x, y):
        shift, self.mean = self.mean, 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return super().step(x - shift, y)


@pytest.mark.parametrize(
    ("module", "place"),
    [
        (RunningMean(), "'mean'"),
        (Codebook(), "'codes'"),
        (RunningMeanInAnAttribute(), "an attribute of RunningMeanInAnAttribute"),
    ],
)
def test_steps_that_remember_their_data(module, place):
    assert ("remembers", place) in said(module)


# --- rows, P9, P13: what the engine makes of the model ---------------------------------------------------


class Draws(Fit):
    """K noise draws a row."""

    rows_per_example = 3

    def __init__(self, repeat=lambda x: x.repeat_interleave(3, dim=0)) -> None:
        super().__init__()
        self.repeat = repeat

    def errors(self, x, y):
        x, y = self.repeat(x), self.repeat(y)
        return super().errors(x + 0.1 * torch.randn_like(x), y)


class DrawsUntold(Draws):
    rows_per_example = 1


def test_rows_that_are_not_declared_are_followed():
    assert findings(DrawsUntold()) == []


def test_rows_of_a_unit_that_are_not_beside_each_other():
    one_after_the_other = Draws(lambda x: x.repeat(3, *(1,) * (x.ndim - 1)))
    (finding,) = findings(one_after_the_other)
    assert finding.code == "coupling"
    assert "units are mixed by repeat" in finding.problem


class OnlyTheLastUse(BookKeeping):
    """P9, as hooks that overwrite: of a weight used twice, only one use counts."""

    def collect(self):
        for uses in self._recording().uses.values():
            del uses[1:]
        return super().collect()


class Tied(Fit):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4))

    def errors(self, x, y):
        return super().errors(self.net(x).tanh(), y)


class HalfPrecision(BookKeeping):
    """P13: a clipped sum that was rounded to bf16."""

    def take(self):
        return {name: value.bfloat16().float() for name, value in super().take().items()}


class Unclipped(BookKeeping):
    def attach(self, module, *, function, max_grad_norm):
        super().attach(module, function=function, max_grad_norm=1e6 * max_grad_norm)


@pytest.mark.parametrize(
    ("engine", "module"), [(OnlyTheLastUse(), Tied()), (HalfPrecision(), Fit()), (Unclipped(), Fit())]
)
def test_engines_that_are_wrong(engine, module):
    (finding,) = findings(module, engine=engine)
    assert finding.code == "clipping"
    assert type(engine).__name__ in finding.problem


def test_layers_without_a_rule_are_run_per_unit():
    module = Fit(nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 1)))
    assert findings(module, made_up=bags()) == []


class Table(nn.Module):
    """A fixed table of five entries meets a parameter, once for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.table * self.scale).tanh().mean(dim=0)


def test_a_table_that_is_as_long_as_a_batch():
    """In a batch of five its entries would pass for the rows, if lengths were asked."""
    assert findings(Fit(nn.Sequential(Table(), nn.Linear(4, 1)))) == []


class DrawsAgain(Materialised):
    """Runs a layer once more for its gradient, and its dropout too."""


class HandMade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x @ self.weight, 0.5)


def test_an_engine_that_draws_again():
    (finding,) = findings(Fit(HandMade()), engine=DrawsAgain())
    assert (finding.code, finding.place) == ("clipping", "'net.weight'")
    assert findings(Fit(HandMade())) == []


def test_a_clipping_function_that_names_no_parameter():
    (finding,) = findings(Fit(), function=PerGroup(groups={"condition": ["typo"]}))
    assert (finding.code, finding.place) == ("clipping", "privacy.clipping_function")


# --- P12: broken units ----------------------------------------------------------------------------------


class Skips(Fit):
    def step(self, x, y):
        loss = super().step(x, y)
        return loss if loss.isfinite() else None


class Asserts(Fit):
    def step(self, x, y):
        if not x.isfinite().all():
            raise FloatingPointError("not finite")
        return super().step(x, y)


class ScalesDown(Fit):
    """Halves the loss of all while one value is infinite."""

    def step(self, x, y):
        return super().step(x, y) * (0.5 if x.isinf().any() else 1.0)


@pytest.mark.parametrize("module", [Skips(), Asserts(), ScalesDown()])
def test_one_broken_unit_that_spoils_the_others(module):
    (finding,) = findings(module)
    assert finding.code in ("not-finite", "coupling")
    assert finding.place.startswith("training_step")


# --- what can't be tried --------------------------------------------------------------------------------


class NoLoss(Fit):
    def step(self, x, y):
        return None


class Squeezes(Fit):
    def errors(self, x, y):
        return (self.net(x).squeeze()[:, None] - y).square().mean(dim=1)


class FromNumpy(Fit):
    def step(self, x, y):
        noise = torch.from_numpy(np.random.standard_normal(x.shape)).float()
        return self.errors(x + noise, y).mean()


class NeverFinite(Fit):
    def errors(self, x, y):
        return (0 * super().errors(x, y)).sqrt()


@pytest.mark.parametrize(
    ("module", "code", "text"),
    [
        (NoLoss(), "fails", "it returned no loss"),
        (Squeezes(), "fails", "in a batch of one unit"),
        (FromNumpy(), "unchecked", "numpy"),
        (NeverFinite(), "unchecked", "no finite gradient"),
    ],
)
def test_steps_that_can_not_be_tried(module, code, text):
    (finding,) = findings(module)
    assert finding.code == code
    assert text in finding.problem


# --- honest modules -------------------------------------------------------------------------------------


class Counts(Fit):
    """A warm-up that counts its own steps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def step(self, x, y):
        self.steps += 1
        return super().step(x, y) * self.steps / 10


class Channels(Fit):
    """Every column is a row of its own under shared weights."""

    rows_per_example = 4

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.3), nn.GroupNorm(2, 8), nn.Linear(8, 1)))

    def errors(self, x, y):
        out = self.net(x.flatten()[:, None]).view(len(x), 4)
        return (out.mean(dim=1) - y).square()


class Denoiser(nn.Module):
    """A look-up, positions, attention and dropped activations that are computed again."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.time = nn.Embedding(50, 4)
        self.positions = nn.Parameter(torch.randn(2, 4))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = x[:, None] + self.positions + self.time(time)[:, None]
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return checkpoint(self.inner, h, use_reentrant=self.reentrant)


class Diffusion(Draws):
    """Times, noise and rows that are dropped."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.net = Denoiser(reentrant=reentrant)

    def errors(self, x, y):
        time = torch.randint(50, (len(x),)).repeat_interleave(3)
        x, y = self.repeat(x), self.repeat(y)
        noise = torch.empty_like(x).normal_()
        keep = torch.bernoulli(torch.full((len(x),), 0.9))
        return (self.net(x + noise, time).mean(dim=(1, 2)) - y).square() * keep


class OwnGaps(Fit):
    """Missing values, each row's own business; a draw of python's for the whole batch."""

    def step(self, x, y):
        told = x.isnan().logical_not().float()
        error = (self.net(x.nan_to_num(0.0)) - y[:, None]).square()
        loss = ((error * told).sum(dim=1) / told.sum(dim=1).clamp_min(1)).mean()
        return loss * (1 + random.random())


class FiniteWhileShut(Fit):
    """Has to start at 0."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 1))
        for parameter in self.net.parameters():
            nn.init.zeros_(parameter)

    def errors(self, x, y):
        return (1e-3 - self.net(x).flatten().square()).sqrt() - y


@pytest.mark.parametrize("engine", [BookKeeping, Materialised, Loop])
def test_honest_modules_pass_with_every_engine(engine):
    assert findings(Fit(), engine=engine()) == []
    assert findings(Tied(), engine=engine()) == []


@pytest.mark.parametrize(
    "module",
    [
        Counts(),
        Channels(),
        Draws(),
        Diffusion(reentrant=False),
        Diffusion(reentrant=True),
        OwnGaps(),
        FiniteWhileShut(),
    ],
)
def test_honest_modules_pass(module):
    assert findings(module) == []


@pytest.mark.parametrize("function", [Automatic(), PerLayer(), PerGroup(groups={"last": ["2"]})])
def test_honest_modules_pass_with_every_function(function):
    assert findings(Fit(), function=function) == []


def test_units_of_several_rows_pass():
    assert findings(Draws(), rows_per_unit=2) == []


# --- draws that others know -----------------------------------------------------------------------------


class Noisy(Fit):
    """Noise of its own, by whichever way to seed it."""

    def __init__(self, noise=lambda self, x: torch.randn_like(x)) -> None:
        super().__init__()
        self.noise = noise
        self.generator = torch.Generator().manual_seed(5)
        self.numbers = np.random.default_rng(5)

    def errors(self, x, y):
        return super().errors(x + self.noise(self, x), y)


def seeded(self, x):
    torch.manual_seed(0)
    return torch.randn_like(x)


def forked(self, x):
    with torch.random.fork_rng():
        torch.manual_seed(len(x))
        return torch.randn_like(x)


def by_numpy(self, x):
    np.random.seed(0)
    return torch.full_like(x, np.random.rand())


def by_python(self, x):
    random.seed("a word")
    return random.random()


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        (seeded, "sets torch's seed, so aten.randn_like"),
        (forked, "sets torch's seed"),
        (by_numpy, "sets the seed of numpy"),
        (by_python, "sets the seed of Python's random"),
        (lambda self, x: torch.randn(x.shape, generator=self.generator), "draws from a generator of its own"),
        (lambda self, x: self.numbers.random(), "draws from the generator 'numbers'"),
        (lambda self, x: np.random.default_rng(3).random(), "makes a generator of numpy's from a number"),
    ],
)
def test_draws_by_a_seed(noise, text):
    found = [finding for finding in findings(Noisy(noise)) if finding.code == "seeded"]
    assert len(found) == 1
    assert text in found[0].problem
    assert "remove the seed" in found[0].fix


def test_draws_that_nobody_knows_pass():
    assert findings(Noisy()) == []
    assert findings(Noisy(lambda self, x: random.random() + np.random.rand())) == []
    assert findings(Noisy(lambda self, x: 0.0)) == [], "a generator that is not used"


# --- nothing to look at ---------------------------------------------------------------------------------


class Zero(Fit):
    def step(self, x, y):
        return super().step(x, y) * 0


class Blind(Fit):
    """Sees no value of its batch."""

    def errors(self, x, y):
        return super().errors(torch.ones_like(x), torch.zeros_like(y))


class Spare(Fit):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 1)


class OnlyAbove(Spare):
    """What made-up units don't reach trains on the first private one that does."""

    def step(self, x, y):
        return super().step(x, y) + (self.spare(x).mean() if (x == 0.125).any() else 0.0)


@pytest.mark.parametrize(
    ("module", "place", "text"),
    [
        (Zero(), "training_step", "gradient of zero for every trainable parameter"),
        (Blind(), "training_step", "the same gradient for all made-up units"),
    ],
)
def test_a_check_that_had_nothing_to_look_at_says_so(module, place, text):
    (finding,) = findings(module)
    assert (finding.code, finding.place) == ("unchecked", place)
    assert text in finding.problem


def test_units_that_are_alike_are_given_other_values():
    assert findings(Fit(), made_up=[torch.ones(NUM_UNITS, 4), torch.ones(NUM_UNITS)]) == []


@pytest.mark.parametrize("module", [Spare(), OnlyAbove()])
def test_what_nothing_reaches_is_no_fault(module):
    assert [one.code for one in findings(module)] in ([], ["coupling"])


class SometimesSkipped(Spare):
    """A branch at random is reached in one of several tries."""

    def errors(self, x, y):
        return super().errors(x, y) + (self.spare(x).square().flatten() if random.random() < 0.4 else 0)


def test_a_branch_at_random_is_reached():
    assert findings(SometimesSkipped()) == []


# --- the parts ------------------------------------------------------------------------------------------


def test_layers():
    module = nn.ModuleDict(
        {"a": nn.BatchNorm2d(3), "b": nn.InstanceNorm1d(3, track_running_stats=True), "c": nn.LazyLinear(3)}
    )
    found = find_in_layers(module)
    assert [(f.code, f.place) for f in found] == [
        ("batch-norm", "'a'"),
        ("batch-norm", "'b'"),
        ("clipping", "'c'"),
    ]
    frozen = nn.Linear(3, 3).requires_grad_(False)
    assert [f.code for f in find_in_layers(frozen)] == ["nothing-trains"]
    assert find_in_layers(nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm1d(3))) == []


@pytest.mark.parametrize(
    ("layer", "code", "text"),
    [
        (nn.Embedding(5, 4, max_norm=1.0), "remembers", "has max_norm"),
        (nn.utils.spectral_norm(nn.Linear(3, 3)), "clipping", "spectral_norm"),
        (torch.jit.script(nn.Linear(3, 3)), "clipping", "TorchScript"),
    ],
)
def test_layers_that_nothing_can_clip_are_called_by_their_names(layer, code, text):
    finding = find_in_layers(nn.Sequential(layer))[0]
    assert finding.code == code
    assert text in finding.problem


class Penalised(Fit):
    """The weights' own square in the loss meets no unit."""

    def step(self, x, y):
        return super().step(x, y) + self.net[0].weight.square().sum()


def test_what_an_engine_refuses_is_not_offered_for_acceptance():
    (finding,) = findings(Penalised())
    assert finding.problem.count(". ") == 0, "one sentence"
    with pytest.raises(ValueError, match=r"net\.0\.weight") as error:
        settle([finding], accept={"clipping": "a test"})
    assert "privacy.accept" not in str(error.value)


def bags() -> list[Tensor]:
    return [torch.randint(5, (NUM_UNITS, 6)), torch.randn(NUM_UNITS)]


class Experts(Fit):
    """Each row goes through one of two layers."""

    def errors(self, x, y):
        chosen = x[:, 0] > 0
        out = x.new_zeros(len(x), 8)
        out[chosen], out[~chosen] = self.net[0](x[chosen]), self.net[0](x[~chosen]) * 2
        return (self.net[2](out).flatten() - y).square()


def test_rows_that_are_selected_are_said_to_be():
    (finding,) = findings(Experts())
    assert finding.code == "coupling"
    assert "out[chosen], out[~chosen]" in finding.place


def test_lined_up_draws_are_the_same_alone_and_in_a_batch():
    def everything(rows: int) -> list[Tensor]:
        probabilities = torch.tensor([0.1, 0.7, 0.2]).expand(rows, 3)
        return [
            torch.rand(rows),
            torch.randn(rows, 4, 5),
            torch.randint(3, 9, (rows,)),
            torch.rand_like(probabilities),
            F.dropout(torch.ones(rows, 4), 0.4),
            torch.bernoulli(probabilities),
            torch.multinomial(probabilities, 2),
            torch.normal(probabilities, 1.0),
            torch.poisson(5 * probabilities),
            torch.empty(rows, 2).exponential_(),
            torch.empty(rows, 2).uniform_(-1, 1),
            torch.distributions.Gamma(probabilities, 1.0).sample(),
            F.gumbel_softmax(probabilities),
            torch.randint_like(probabilities, 7),
        ]

    with RowAlignedRandomness().at_work(torch.device("cpu")):
        assert (torch.randperm(5) != torch.arange(5)).all()
    results = []
    for rows in (1, 6):
        draws = RowAlignedRandomness()
        with draws.at_work(torch.device("cpu")):
            results.append(everything(rows))
        assert not draws.foreign
    for alone, together in zip(*results, strict=True):
        for row in together:
            assert torch.equal(row, alone[0])
    assert results[0][2].item() in range(3, 9)
    assert results[0][4].ne(0).all()


@pytest.mark.parametrize("kind", [RowAlignedRandomness, RecordedRandomness])
def test_draws_leave_every_generator_as_it_was(kind):
    own = torch.Generator().manual_seed(4)

    def state() -> tuple:
        numbers = np.random.get_state()
        return (
            torch.get_rng_state().tolist(),
            numbers[1].tolist(),
            numbers[2],
            random.getstate(),
            own.get_state().tolist(),
        )

    before = state()
    with kind().at_work(torch.device("cpu")):
        torch.randn(5)
        torch.randn(5, generator=own)
        np.random.rand(3)
        random.random()
    assert state() == before


@dataclass
class Rows:
    x: Tensor
    names: list[str]
    table: Tensor


def test_made_up_units_are_cut_put_together_and_broken():
    rows = Rows(torch.arange(26.0).view(26, 1), [str(i) for i in range(26)], torch.zeros(3, 2))
    units = made_up_of({"rows": (rows, np.arange(13))}, rows_per_unit=2)
    picked, numbers = units.pick([4, 1])["rows"]
    assert picked.x.flatten().tolist() == [8, 9, 2, 3]
    assert picked.names == ["8", "9", "2", "3"]
    assert numbers.tolist() == [4, 1]
    assert picked.table.shape == (3, 2)
    picked.x.zero_()
    assert units.pick([4])["rows"][0].x.flatten().tolist() == [8, 9], "in memory of its own"
    broken = units.broken(1, value=math.inf).pick([0, 1])["rows"][0].x
    assert broken.flatten().tolist() == [0, 1, math.inf, math.inf]
    gaps = units.with_gaps().pick(range(13))["rows"][0].x
    assert 0 < gaps.isnan().float().mean() < 0.6
    assert made_up_of([torch.arange(13)], rows_per_unit=1).broken(0, value=1.0) is None
    with pytest.raises(ValueError, match="nothing with 39 rows"):
        made_up_of(rows, rows_per_unit=3)


def test_a_function_that_keeps_the_module_reaches_the_copy_in_a_copy():
    module = nn.Module()
    module.net, scale = nn.Linear(3, 1), torch.tensor(2.0)
    module.loss = lambda x, *, power=2: scale * module.net(x).pow(power)
    again = copied(module, with_weights=True)
    nn.init.zeros_(again.net.weight)
    nn.init.zeros_(again.net.bias)
    x = torch.ones(2, 3)
    assert again.loss(x).abs().max() == 0
    assert module.loss(x).abs().max() > 0
    assert copied(again).net.weight is again.net.weight


class _Counter(nn.Module):
    """Of everything that a copy could get wrong: ties, cycles, tables by module, state that Python keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.one.weight
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        self.alias, self.itself = self.seen, [self, (self.one, 1)]
        self.table = {self.one: [1], "both": self.other, "none": None}
        self.same = self.table
        self.one.register_forward_hook(lambda module, args, output: None)
        self.empty: set[int] = set()
        self.array, self.number = np.zeros(2), random.Random(0)
        self.custom = _Custom()


class _Custom(nn.Module):
    def __deepcopy__(self, memo):
        again = _Custom()
        again.was_asked = True
        return again


def test_a_copy_is_what_deepcopy_makes_but_for_what_is_shared():
    module = _Counter()
    for again, alike in ((copied(module, with_weights=True), copy.deepcopy(module)), (copied(module), None)):
        assert again is not module
        assert again.one is not module.one
        assert (again.one.weight is module.one.weight) == (alike is None)
        assert again.other.weight is again.one.weight
        assert again.alias is again.seen is not module.seen
        assert again.itself is not module.itself
        assert again.itself[0] is again
        assert again.itself[1][0] is again.one
        assert again.table is again.same is not module.table
        assert again.table["both"] is again.other
        assert next(iter(again.table)) is again.one
        assert again.table[again.one] is not module.table[module.one]
        assert again.custom.was_asked
        assert list(again.one._forward_hooks) == list(module.one._forward_hooks)
        for name in ("empty", "array", "number"):
            assert getattr(again, name) is not getattr(module, name), name
        for one, its_copy in zip(module.modules(), again.modules(), strict=True):
            tables = [name for name, value in vars(one).items() if isinstance(value, dict | set | list)]
            assert tables
            assert not [name for name in tables if getattr(one, name) is getattr(its_copy, name)]
            assert all(type(getattr(one, name)) is type(getattr(its_copy, name)) for name in tables)
        if alike is not None:
            assert [*vars(again)] == [*vars(alike)]
    assert gc.isenabled()


def test_a_table_as_long_as_there_are_made_up_units_is_nobodys():
    units = MadeUpUnits.of(lambda n: [torch.arange(n), torch.arange(13)], num_units=13, rows_per_unit=1)
    assert [len(part) for part in units.pick([2, 3])] == [2, 13]
    with pytest.raises(NoLayout):
        MadeUpUnits.of(lambda n: [torch.arange(n), torch.arange(n // 3)], num_units=13, rows_per_unit=1)


def test_all_findings_are_in_one_message_and_reasons_are_kept():
    one = Finding(code="coupling", place="'net'", problem="couples", fix="don't")
    other = Finding(code="delta", place="privacy.delta", problem="is large", fix="take a smaller one")
    with pytest.raises(ValueError, match="couples") as error:
        settle([one, other, one], accept={})
    assert str(error.value).count("couples") == 1
    assert "[delta] privacy.delta is large; take a smaller one." in str(error.value)
    assert "privacy.accept.coupling" in str(error.value)
    with pytest.raises(ValueError, match="is large"):
        settle([one, other], accept={"coupling": "a test"})
    accepted = settle([one, other], accept={"coupling": "a test", "delta": "two tests"})
    assert [a.to_dict()["reason"] for a in accepted] == ["a test", "two tests"]
    assert str(accepted[0]) == "preflight coupling: 'net' couples; accepted: a test"


def test_nobody_accepts_that_nothing_trains_or_gives_no_reason():
    for accept in ({"nothing-trains": "why not"}, {"typo": "a reason"}, {"delta": " "}):
        with pytest.raises(ValueError, match=r"privacy\.accept"):
            check_accept(accept)
    check_accept({code: "a reason" for code in CODES if code != "nothing-trains"})


class Steep(Fit):
    """So steep where values are large that batches of other sizes, whose sums round otherwise, show."""

    def __init__(self, *, coupled: bool = False, single: bool = False) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(32, 32)])
        self.coupled, self.single = coupled, single

    def errors(self, x: Tensor, y: Tensor) -> Tensor:
        if self.coupled:
            x = x / x.abs().amax().clamp_min(1e3) * 1e3
        if self.single:
            x = x @ torch.eye(32)  # fp32, whatever the net is
        for layer in self.net:
            x = layer(x) * x
        return torch.sin(x.sum(dim=1)) + 0 * y


def _of_large_values(module: nn.Module) -> list[Finding] | None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    made_up = [torch.randn(NUM_UNITS, 32), torch.randn(NUM_UNITS)]
    trial = Trial(
        step=TrainingStep(module, loss=lambda module, rows: module.step(*rows), device=torch.device("cpu")),
        units=made_up_of(made_up, rows_per_unit=1),
        rows_per_unit=1,
        engine=BookKeeping(),
        function=Flat(),
    )
    return couples(trial, trial.units.changed(large), range(4), when="where values are large")


def test_rounding_of_a_steep_net_is_no_coupling_and_a_coupling_of_one_is(monkeypatch):
    assert _of_large_values(Steep()) == []
    (found,) = _of_large_values(Steep(coupled=True))
    assert "where values are large" in found.problem
    # It is the look in fp64 that tells: without one the steep net would be taken for coupled.
    monkeypatch.setattr(TrainingStep, "in_double", lambda step: step)
    assert len(_of_large_values(Steep())) == 1


def test_what_can_not_run_in_fp64_proves_nothing():
    (found,) = _of_large_values(Steep(single=True))
    assert "where values are large" in found.problem
