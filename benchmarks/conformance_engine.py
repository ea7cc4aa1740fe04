"""The one place where the conformance scan prepares the engine, as a fit does before its first row."""

from conformance_models.case import Batch, Step
from torch import nn

from lightning_dp.privacy.clipping.book_keeping import BookKeeping
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import Flat


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
    engine.attach(module, function=Flat(), max_grad_norm=max_grad_norm)
    return engine
