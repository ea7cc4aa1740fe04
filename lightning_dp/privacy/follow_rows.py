"""Where uses of parameters have units in a step that nobody tried before: for passes beside training."""

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_dp.privacy.batch_layout import BatchLayout
from lightning_dp.privacy.clipping.following import Followed
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.preflight.copies import copied


def follow_rows(
    module: Any,
    loss: Callable[[Any, Any], Any],
    batch: Any,
    *,
    num_units: int,
    attached: Callable[[Any], nn.Module] = lambda module: module,
) -> Sites:
    """Follow one step of a copy of `module`, on the CPU.

    Args:
        module: an nn.Module.
        loss: from module and batch to a scalar mean or one loss a row.
        batch: with rows first in every part, `num_units` units of as many rows.
        num_units: of the batch.
        attached: the part of the module that an engine will be attached to.

    Raises:
        NoLayout: see there.
        UnitsMixed: units see each other.
    """
    again = copied(module, with_weights=True).cpu()
    unit = BatchLayout.rows_first(batch, num_units=num_units).first(batch, num_units=num_units)
    followed = Followed(attached(again))
    try:
        followed.step(lambda: loss(again, unit))
    finally:
        followed.close()
    return followed.sites
