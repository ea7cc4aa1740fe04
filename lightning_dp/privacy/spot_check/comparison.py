"""Whether units run again have the gradients that were measured of them in their batch.

Tolerances are shares of a norm. Kernels round differently by the size of a batch, and an engine's norms come
about another way than a gradient's: in fp32 clean models were seen to differ by up to 3e-5 of a unit's
norm, so 2e-3 is far from that and far below any fault that matters, which changes norms by the rows of
other units. Half precision rounds each activation to 2⁻⁹ (bf16) and rounds the loss's gradient anew for each
size of a batch; so sixteen such steps are allowed on top.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from lightning_dp.privacy.preflight.draws import Draws
from lightning_dp.privacy.spot_check.rerun import Rerun

_TOLERANCE = 2e-3
_ROUNDINGS = 16
_SIGNIFICANT = 1e-2
"""Share of a unit's norm from which on a parameter counts for telling which of them are wrong."""


def tolerance(*, half: bool, device: torch.device) -> float:
    """Share of a norm by which two computations of it may differ.

    Args:
        half: whether something of the step is computed in bf16 or fp16.
        device: where; a GPU may round factors of products to TF32 (2⁻¹¹).
    """
    if half:
        return _TOLERANCE + _ROUNDINGS * 2.0**-9
    reduced = torch.get_float32_matmul_precision() != "highest" or (
        device.type == "cuda" and torch.backends.cudnn.allow_tf32
    )
    return _TOLERANCE + (_ROUNDINGS * 2.0**-11 if reduced else 0.0)


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
        share: tolerance as a share of a norm.
        floor: ≥ 0; norms below it contribute too little to matter, whatever they are.
    """

    def __init__(
        self,
        rerun: Rerun,
        *,
        pick: Callable[[Sequence[int]], Any],
        units: Sequence[int],
        share: float,
        floor: float,
    ) -> None:
        self._rerun = rerun
        self._pick = pick
        self._units = list(units)
        self._share = share
        self._floor = floor

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
        alone: list[dict[str, Tensor]] = []
        for unit in self._units:
            gradient = self._rerun.gradient(self._pick([unit]), draws=draws([unit]))
            measured = {name: float(value[unit]) for name, value in found.items()}
            total = math.hypot(*measured.values()) if totals is None else float(totals[unit])
            apart = self._apart(measured, total, _norms(gradient))
            if apart is not None:
                return apart
            if len(alone) < 2:
                alone.append(gradient)
        return self._beside(alone, draws=draws) if len(alone) == 2 else None

    def same(self, left: Any, right: Any, *, draws: Callable[[], Draws]) -> Disagreement | None:
        """Two batches that should be the same unit."""
        one, other = (self._rerun.gradient(batch, draws=draws()) for batch in (left, right))
        apart = {name: _or_zero(one, other, name) - _or_zero(other, one, name) for name in {**one, **other}}
        place = self._too_large(_norms(apart), _norms(one), _norms(other))
        return None if place is None else Disagreement(kind="collation", place=place)

    def _beside(
        self, alone: Sequence[dict[str, Tensor]], *, draws: Callable[[Sequence[int]], Draws]
    ) -> Disagreement | None:
        pair = self._units[:2]
        apart = self._rerun.gradient(self._pick(pair), draws=draws(pair))  # the mean of both
        sizes = [_norms(gradient) for gradient in alone]
        for name in {**alone[0], **alone[1]}:
            mean = _or_zero(apart, alone[0] if name in alone[0] else alone[1], name).double()
            apart[name] = 2 * mean - _or_zero(alone[0], alone[1], name) - _or_zero(alone[1], alone[0], name)
        place = self._too_large(_norms(apart), *sizes)
        return None if place is None else Disagreement(kind="coupling", place=place)

    def _too_large(self, apart: Mapping[str, float], *sizes: Mapping[str, float]) -> str | None:
        total = math.hypot(*(value for size in sizes for value in size.values()))
        worst, place = 1.0, None
        for name, value in apart.items():
            own = max(size.get(name, 0.0) for size in sizes)
            ratio = value / (self._share * (own + total) + self._floor)
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
            return not abs(one - other) <= self._share * (max(one, other) + largest) + self._floor

        off = [name for name in names if wrong(measured.get(name, 0.0), alone.get(name, 0.0))]
        if not off and not wrong(total, whole):
            return None
        counted = [
            name
            for name in names
            if max(measured.get(name, 0.0), alone.get(name, 0.0)) > _SIGNIFICANT * largest
        ]
        if not off or set(counted) <= set(off):
            return Disagreement(kind="coupling", place=off[0] if off else "training_step")
        return Disagreement(
            kind="engine", place=max(off, key=lambda n: abs(measured.get(n, 0.0) - alone.get(n, 0.0)))
        )


def _norms(gradient: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        name: float(torch.linalg.vector_norm(value, dtype=torch.float64)) for name, value in gradient.items()
    }


def _or_zero(gradient: Mapping[str, Tensor], like: Mapping[str, Tensor], name: str) -> Tensor:
    return gradient[name].double() if name in gradient else torch.zeros_like(like[name]).double()
