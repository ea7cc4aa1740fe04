"""Running an engine once, and comparing it with the oracle."""

from collections.abc import Callable
from typing import Any

import torch
from follow_steps import sites_of
from torch import Tensor, nn

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction, Flat
from lightning_dp.privacy.clipping.loop import Loop

Result = tuple[Tensor, dict[str, Tensor]]


def run(
    engine: ClippingEngine,
    model: nn.Module,
    row_losses: Callable[[], Tensor],
    *,
    units: int,
    rows_per_unit: int = 1,
    max_grad_norm: float = 0.05,
    weights: Tensor | None = None,
    function: ClippingFunction | None = None,
    loss_scale: float = 1.0,
    constants: tuple = (),
) -> Result:
    """Norms and sums of one batch; the engine is detached whatever happens."""
    engine.know(sites_of(model, row_losses, units=units, rows_per_unit=rows_per_unit, constants=constants))
    engine.attach(model, function=function or Flat(), max_grad_norm=max_grad_norm)
    try:
        engine.expect(
            unit_weights=torch.ones(units) if weights is None else weights,
            rows_per_unit=rows_per_unit,
            loss_scale=loss_scale,
        )
        (row_losses().mean() * loss_scale).backward()
        return engine.collect(), engine.take()
    finally:
        engine.detach()


def distance(found: Result, oracle: Result) -> float:
    """Largest relative error of any unit's norm and of any parameter's sum.

    Sums below a hundredth of all sums together count as that: some (biases of keys) are 0 but for rounding.
    """
    norms = ((found[0] - oracle[0]).abs() / oracle[0].clamp_min(1e-12)).max()
    assert found[1].keys() == oracle[1].keys()
    whole = total_norm(oracle[1])
    sums = max(
        float(
            (found[1][n] - oracle[1][n]).double().norm()
            / max(float(oracle[1][n].double().norm()), 1e-2 * whole)
        )
        for n in oracle[1]
    )
    return max(float(norms), sums)


def total_norm(sums: dict[str, Tensor]) -> float:
    """ℓ2 norm of all sums together, in fp64."""
    return float(torch.stack([s.double().square().sum() for s in sums.values()]).sum().sqrt())


def compare(
    engine: ClippingEngine, model: nn.Module, row_losses: Callable[[], Tensor], **config: Any
) -> float:
    """`distance` of an engine from Loop."""
    oracle = run(Loop(), model, row_losses, **config)
    return distance(run(engine, model, row_losses, **config), oracle)
