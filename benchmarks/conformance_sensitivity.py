"""How far can one unit move the clipped sum, whatever its values, for every engine? At most C.

    python benchmarks/conformance_sensitivity.py --examples 1000

Searches values (magnitudes from 1e-30 to 1e30, NaN, infinities, zeros, sentinels), batch sizes, orders,
weights and scales of the loss for a batch D, and a D′ without one of its units, whose clipped sums lie more
than C apart. Everything a unit draws is the same on D and D′, as a proof would fix it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from conformance_engine import make_ready
from conformance_models import CASES
from conformance_models.case import randomized
from hypothesis import HealthCheck, given, settings, strategies as st, target
from torch import Tensor, nn

from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.image_dit import ImageDiT
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.loop import Loop
from lightning_dp.privacy.clipping.materialised import Materialised
from lightning_dp.privacy.row_losses import mean_loss

SLACK = 1e-5
C = 0.1
ENGINES: dict[str, type[ClippingEngine]] = {
    "BookKeeping": BookKeeping,
    "Materialised": Materialised,
    "Loop": Loop,
}
KINDS = ("plain", "constant", "zeros", "sparse", "nan", "inf", "sentinel")
_EXPONENTS = (0, *range(-30, 31, 5), *range(15, 21), *range(-24, -17))
_SENTINELS = (-100.0, -1.0, 0.0, 9999.0, 1e18, -3.4e38)


@dataclass(frozen=True)
class Unit:
    """The values of one unit: noise of size 10^exponent, in one of `KINDS`."""

    kind: str = "plain"
    exponent: int = 0
    seed: int = 0

    def values(self, shape: Sequence[int]) -> Tensor:
        """The unit's values, of this shape."""
        generator = torch.Generator().manual_seed(self.seed)
        values = torch.randn(*shape, generator=generator) * 10.0**self.exponent
        some = torch.rand(*shape, generator=generator) < 0.2
        if self.kind == "plain":
            return values
        if self.kind == "constant":
            return torch.full_like(values, 10.0**self.exponent)
        if self.kind == "zeros":
            return torch.zeros_like(values)
        if self.kind == "sparse":
            return torch.where(some, values, 0.0)
        odd = {"nan": torch.nan, "inf": torch.inf, "sentinel": _SENTINELS[self.seed % len(_SENTINELS)]}
        return torch.where(some, odd[self.kind], values)


@dataclass(frozen=True)
class Draw:
    """One try.

    Attributes:
        units: of D, in their order.
        weights: of each.
        without: the unit that D′ lacks, or that is padding.
        scale: of the loss whose backward runs; None is the number of rows.
    """

    units: tuple[Unit, ...]
    weights: tuple[float, ...]
    without: int
    scale: float | None = None


@st.composite
def draws(draw: Any) -> Draw:
    """Batches of 1 to 8 units."""
    kinds, exponents = st.sampled_from(KINDS), st.sampled_from(_EXPONENTS)
    unit = st.builds(Unit, kinds, exponents, st.integers(0, 20))
    units = draw(st.lists(unit, min_size=1, max_size=8))
    weight = st.sampled_from((1.0, 0.5, 0.0))
    weights = draw(st.lists(weight, min_size=len(units), max_size=len(units)))
    scale = draw(st.sampled_from((None, 1.0, 2.0**-12, 2.0**12)))
    return Draw(tuple(units), tuple(weights), draw(st.integers(0, len(units) - 1)), scale)


@dataclass(frozen=True)
class Subject:
    """A module, the shape of a unit's values and the step on (U, *shape) values."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    step: Callable[[Any, Tensor], Any]
    rows_per_unit: int = 1


def _series() -> nn.Module:
    from lightning_dp.diffusion.schedule import Cosine
    from lightning_dp.timeseries.module import TimeSeriesDiffusion
    from lightning_dp.timeseries.normalise import DayMean

    net = SeriesDiT(
        AdaLNZero(),
        length=12,
        num_channels=1,
        num_covariates=1,
        patch_size=3,
        hidden_size=8,
        depth=1,
        num_heads=2,
    )
    return TimeSeriesDiffusion(
        net, normaliser=DayMean(steps_per_day=3), schedule=Cosine(num_steps=100), noise_draws=2
    )


def _series_step(module: Any, values: Tensor) -> Tensor:
    target = torch.zeros(values.shape, dtype=torch.bool)
    target[:, -3:] = True
    batch = {
        "values": values,
        "observed": torch.ones_like(target),
        "target": target,
        "covariates": torch.zeros_like(values),
    }
    return module.per_example_losses(batch)


def _images() -> nn.Module:
    from lightning_dp.images.module import LatentDiffusion

    net = ImageDiT(
        AdaLNZero(), in_channels=1, size=8, num_classes=3, patch_size=4, hidden_size=16, depth=1, num_heads=2
    )
    return LatentDiffusion(net, optimizer=torch.optim.AdamW)


def _images_step(module: Any, values: Tensor) -> Tensor:
    return module.per_example_losses({"images": values, "labels": torch.arange(len(values)) % 3})


def _foreign(name: str, *shape: int) -> Subject:
    case = CASES[name]
    return Subject(case.build, shape, lambda module, values: case.step(module, {"x": values}))


def _normed(*shape: int, width: int) -> Subject:
    """Readings straight into a layer whose output is normalised: huge values have ordinary gradients."""
    return Subject(
        lambda: nn.Sequential(
            nn.Linear(shape[-1], width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 3)
        ),
        shape,
        lambda module, values: module(values).square().flatten(1).mean(dim=1),
    )


SUBJECTS: dict[str, Subject] = {
    "series": Subject(_series, (12, 1), _series_step, rows_per_unit=2),
    "images": Subject(_images, (1, 8, 8), _images_step),
    "timm ViT": _foreign("timm ViT", 3, 16, 16),
    "torch TransformerEncoder": _foreign("torch TransformerEncoder", 5, 8),
    "normed readings": _normed(16, width=256),
    "normed series": _normed(8, 16, width=32),
}


class Tried:
    """A subject under an engine, attached once."""

    def __init__(self, subject: Subject, engine: type[ClippingEngine], *, half: bool) -> None:
        torch.manual_seed(0)
        self.subject, self.half, self.engine = subject, half, engine()
        self.module = randomized(subject.build())
        shape = (3 * subject.rows_per_unit, *subject.shape)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        make_ready(self.engine, self.module, subject.step, values, 3, max_grad_norm=C)

    def sums(
        self, units: Sequence[Unit], *, weights: Sequence[float], scale: float | None
    ) -> dict[str, Tensor]:
        """The clipped sums of these units."""
        values = torch.stack([unit.values(self.subject.shape) for unit in units])
        rows_per_unit = self.subject.rows_per_unit
        # As many times as there are rows, no unit's gradient is rounded by the others' number.
        scale = float(len(values) * rows_per_unit) if scale is None else scale
        self.engine.expect(unit_weights=torch.tensor(weights), rows_per_unit=rows_per_unit, loss_scale=scale)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16) if self.half else nullcontext():
            loss = mean_loss(self.subject.step(self.module, values))
        (loss * scale).backward()
        self.engine.collect()
        return self.engine.take()

    def moved(self, draw: Draw) -> tuple[float, float]:
        """How far apart the sums of D and D′ are, and how far other values of padding move D′; in C."""
        others = [0.0 if i == draw.without else w for i, w in enumerate(draw.weights)]
        padded = [Unit(seed=99) if i == draw.without else u for i, u in enumerate(draw.units)]
        on_d = self.sums(draw.units, weights=draw.weights, scale=draw.scale)
        without = self.sums(draw.units, weights=others, scale=draw.scale)
        padding = self.sums(padded, weights=others, scale=draw.scale)
        return _distance(on_d, without) / C, _distance(without, padding) / C


def _distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """ℓ2 distance in fp64; NaN and infinities count as infinitely far."""
    squares = [(first[n].double() - second[n].double()).square().sum() for n in first]
    return float(torch.stack(squares).sum().sqrt().nan_to_num(torch.inf))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--examples", type=int, default=1000, help="tries of each engine on each module")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults = 0
    for half in (False, True):
        for name, subject in SUBJECTS.items():
            for engine, kind in ENGINES.items():
                found = _search(Tried(subject, kind, half=half), examples=options.examples)
                faults += found.moved > 1 + SLACK or found.padding > 0
                precision = "bf16" if half else "fp32"
                print(f"{name:26} {engine:13} {precision}  {found}", flush=True)
    sys.exit(faults > 0)


@dataclass
class _Found:
    """The worst of one search."""

    moved: float = 0.0
    padding: float = 0.0
    raised: int = 0
    at: Draw | None = None

    def __str__(self) -> str:
        where = f"  at {self.at}" if self.moved > 1 + SLACK or self.padding > 0 else ""
        raised = f"  raised {self.raised} times" if self.raised else ""
        return f"{self.moved:.6f} C  padding {self.padding:.1e} C{raised}{where}"


def _search(tried: Tried, *, examples: int) -> _Found:
    worst = _Found()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(draws())
    def search(draw: Draw) -> None:
        try:
            moved, padding = tried.moved(draw)
        except RuntimeError:
            worst.raised += 1
            return
        target(min(moved, 1e6))
        if moved > worst.moved or padding > worst.padding:
            worst.at = draw
        worst.moved, worst.padding = max(worst.moved, moved), max(worst.padding, padding)

    search()
    return worst


if __name__ == "__main__":
    main()
