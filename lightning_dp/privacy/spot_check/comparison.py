"""Whether units run again have the gradients that were measured of them in their batch.

Kernels round differently by the size of a batch, and an engine's norms come about another way than a
gradient's. Measured on clean models, every batch checked: up to 1.2e-4 of a unit's norm in fp32, 6e-3 in
bf16, 1e-2 of both norms for two units beside each other in bf16. A fault that matters changes norms by what
other units' rows are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from lightning_dp.privacy.draws import Draws
from lightning_dp.privacy.fp32_precision import is_reduced
from lightning_dp.privacy.spot_check.rerun import Rerun

_SHARE = 2e-3
_USUAL = 2e-4
_FLOOR = 1e-5
_ROUNDINGS = 16
_SIGNIFICANT = 1e-2
"""Share of a unit's norm from which on a parameter counts for telling which of them are wrong."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """By how much two computations of a norm may differ.

    Attributes:
        share: of the unit's own norm.
        usual: of the usual norm in its batch. A gradient that is next to 0, as where a prediction is right,
            is the rounding error of larger numbers.
        floor: ≥ 0; norms below it contribute too little to matter, whatever they are.
    """

    share: float
    usual: float
    floor: float

    @classmethod
    def of(cls, *, half: bool, device: torch.device, norms: Tensor, max_grad_norm: float) -> "Tolerance":
        """Made for one batch.

        Args:
            half: whether something of the step is computed in bf16 or fp16, whose roundings (2⁻⁹ in bf16)
                differ by the size of the batch, as the loss's gradient is divided by it.
            device: where; a GPU may round factors of products to TF32 (2⁻¹¹).
            norms: of the units, more than none.
            max_grad_norm: C > 0.
        """
        rounding = 2.0**-9 if half else 2.0**-11 if is_reduced(device) else 0.0
        share = _SHARE + _ROUNDINGS * rounding
        usual = (share if rounding else _USUAL) * float(norms.median())
        return cls(share=share, usual=usual, floor=_FLOOR * max_grad_norm)

    def allowed(self, size: float) -> float:
        """The largest difference between norms of about `size`."""
        return self.share * size + self.usual + self.floor


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """What a second look found.

    Attributes:
        kind: `engine` where single parameters' norms are wrong, `coupling` where units see each other or the
            loss's divisor depends on the batch, `collation` where a unit is collated differently alone.
        place: a parameter, for one.
    """

    kind: Literal["engine", "coupling", "collation"]
    place: str


@final
class SecondLook:
    """A few units of one physical batch.

    Args:
        rerun: the batch's step.
        pick: positions of units → the batch of these.
        units: positions of those to run, one or more; the first two are run beside each other too.
        tolerance: of the batch.
    """

    def __init__(
        self,
        rerun: Rerun,
        *,
        pick: Callable[[Sequence[int]], Any],
        units: Sequence[int],
        tolerance: Tolerance,
    ) -> None:
        self._rerun = rerun
        self._pick = pick
        self._units = list(units)
        self._tolerance = tolerance

    def compare(
        self,
        norms: Mapping[str, Tensor],
        *,
        totals: Tensor | None = None,
        draws: Callable[[Sequence[int]], Draws],
    ) -> Disagreement | None:
        """Measured norms against plain autograd's.

        Args:
            norms: by parameter name (U,), as measured in the batch; what nothing reached may be missing.
            totals: (U,) over all parameters; None takes them from `norms`.
            draws: for a run of some units.

        Raises:
            CouldNotRun: the step does not run on them alone.
        """
        found = {name: value.double().cpu() for name, value in norms.items()}
        alone: dict[int, dict[str, Tensor]] = {}

        def run(unit: int) -> dict[str, Tensor]:
            return self._rerun.gradient(self._pick([unit]), draws=draws([unit]))

        apart = None
        for unit in self._units:
            gradient = run(unit)
            measured = {name: float(value[unit]) for name, value in found.items()}
            total = math.hypot(*measured.values()) if totals is None else float(totals[unit])
            apart = self._apart(measured, total, _norms(gradient))
            if len(alone) < 2:
                alone[unit] = gradient
            if apart is not None:
                break
        if len(self._units) > 1:
            if len(alone) == 1:
                alone[self._units[1]] = run(self._units[1])
            # Whether two units alone see each other tells whose fault a wrong norm is.
            return self._beside(alone, draws=draws) or apart
        return apart

    def same(self, left: Any, right: Any, *, draws: Callable[[], Draws]) -> Disagreement | None:
        """Two batches that should be the same unit."""
        one, other = (self._rerun.gradient(batch, draws=draws()) for batch in (left, right))
        apart = {name: _or_zero(one, other, name) - _or_zero(other, one, name) for name in {**one, **other}}
        place = self._too_large(_norms(apart), _norms(one), _norms(other))
        return None if place is None else Disagreement(kind="collation", place=place)

    def _beside(
        self, alone: Mapping[int, dict[str, Tensor]], *, draws: Callable[[Sequence[int]], Draws]
    ) -> Disagreement | None:
        one, other = alone.values()
        mean = self._rerun.gradient(self._pick(list(alone)), draws=draws(list(alone)))
        apart: dict[str, Tensor] = {}
        for name in {**one, **other, **mean}:
            like = next(gradient for gradient in (one, other, mean) if name in gradient)
            apart[name] = 2 * _or_zero(mean, like, name)
            apart[name] -= _or_zero(one, like, name) + _or_zero(other, like, name)
        sizes = [_norms(one), _norms(other)]
        place = self._too_large(_norms(apart), *sizes)
        return None if place is None else Disagreement(kind="coupling", place=place)

    def _too_large(self, apart: Mapping[str, float], *sizes: Mapping[str, float]) -> str | None:
        total = math.hypot(*(value for size in sizes for value in size.values()))
        worst, place = 1.0, None
        for name, value in apart.items():
            own = max(size.get(name, 0.0) for size in sizes)
            ratio = value / self._tolerance.allowed(own + total)
            if not ratio <= worst:  # NaN is a difference
                worst, place = ratio, name
        return place

    def _apart(
        self, measured: Mapping[str, float], total: float, alone: Mapping[str, float]
    ) -> Disagreement | None:
        whole = math.hypot(*alone.values())
        largest = max(whole, total)
        names = list({**alone, **measured} if measured else {})

        def wrong(one: float, other: float) -> bool:
            # Of both the tolerance: a parameter's own part may be no more than rounding.
            return not abs(one - other) <= self._tolerance.allowed(max(one, other) + largest)

        off = [name for name in names if wrong(measured.get(name, 0.0), alone.get(name, 0.0))]
        if not off and not wrong(total, whole):
            return None
        ratios = [
            measured.get(name, 0.0) / max(alone.get(name, 0.0), self._tolerance.floor)
            for name in names
            if max(measured.get(name, 0.0), alone.get(name, 0.0)) > _SIGNIFICANT * largest
        ]
        if not off or (len(ratios) > 1 and _are_one_factor(ratios)):
            return Disagreement(kind="coupling", place="training_step")
        place = max(off, key=lambda name: abs(measured.get(name, 0.0) - alone.get(name, 0.0)))
        return Disagreement(kind="engine", place=place)


def _are_one_factor(ratios: Sequence[float]) -> bool:
    """Whether all are equally far from 1, as a divisor of the loss makes them."""
    middle = (max(ratios) + min(ratios)) / 2
    return max(ratios) - min(ratios) <= 0.2 * abs(middle - 1)


def _norms(gradient: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        name: float(torch.linalg.vector_norm(value, dtype=torch.float64)) for name, value in gradient.items()
    }


def _or_zero(gradient: Mapping[str, Tensor], like: Mapping[str, Tensor], name: str) -> Tensor:
    return gradient[name].double() if name in gradient else torch.zeros_like(like[name]).double()
