"""The one place where the conformance scan prepares the engine, as a fit does before its first row."""

from collections.abc import Callable
from typing import Any

from conformance_models.case import Batch, Step
from torch import nn

from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat
from lightning_dp.privacy.follow_rows import follow_rows
from lightning_dp.privacy.row_losses import mean_loss
from lightning_dp.privacy.rows import UnitsMixed


def prepared_engine(
    module: nn.Module, step: Step, batch: Batch, num_units: int, *, max_grad_norm: float
) -> ClippingEngine:
    """The default engine, attached to `module` and ready for `expect`.

    Args:
        step: (module, batch) → per-row losses or their mean; may be called on a copy of `module`.
        batch: made-up rows, each tensor with `num_units` rows first.

    Raises:
        ValueError: the engine refuses the module before training. Nothing is left attached.
    """
    engine = BookKeeping()
    make_ready(engine, module, step, batch, num_units, max_grad_norm=max_grad_norm)
    return engine


def make_ready(
    engine: ClippingEngine,
    module: nn.Module,
    step: Callable[[nn.Module, Any], Any],
    batch: Any,
    num_units: int,
    *,
    max_grad_norm: float,
) -> None:
    """Attach an engine that knows where units are, as a private fit does.

    Raises:
        ValueError: as above.
    """
    try:
        engine.know(
            follow_rows(module, lambda again, unit: mean_loss(step(again, unit)), batch, num_units=num_units)
        )
    except UnitsMixed as error:
        raise ValueError(str(error)) from error
    engine.attach(module, function=Flat(), max_grad_norm=max_grad_norm)
