"""Follow a step that a test wrote as a function without arguments, on a copy of its model."""

import copy
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.following import Followed
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.rows import PRETENDED, spread


def sites_of(
    model: nn.Module, loss: Callable[[], Any], *, units: int, rows_per_unit: int = 1, constants: tuple = ()
) -> Sites:
    """Sites of a step whose closure holds the model and the batch.

    Args:
        model: is copied.
        loss: its closure's tensors with `units` · `rows_per_unit` rows are the batch.
        units: of that batch.
        rows_per_unit: of that batch.
        constants: tensors of the closure that are no batch, though as long.
    """
    state = torch.get_rng_state()
    rows, known = units * rows_per_unit, {id(model): copy.deepcopy(model)}
    for old, new in zip(model.modules(), known[id(model)].modules(), strict=True):
        known[id(old)] = new
    kept = {id(one) for one in constants}

    def changed(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        if isinstance(value, Tensor):
            is_batch = value.ndim > 0 and len(value) == rows and id(value) not in kept
            return spread(value[:rows_per_unit].detach().clone()) if is_batch else value
        if isinstance(value, Mapping):
            return type(value)({key: changed(one) for key, one in value.items()})
        if isinstance(value, list) and len(value) == rows and all(isinstance(one, str) for one in value):
            return value[:rows_per_unit] * PRETENDED
        if isinstance(value, list | tuple):
            return type(value)(changed(one) for one in value)
        if isinstance(value, types.FunctionType) and (value.__closure__ or value.__defaults__):
            cells = tuple(types.CellType(changed(cell.cell_contents)) for cell in value.__closure__ or ())
            defaults = value.__defaults__ and tuple(changed(one) for one in value.__defaults__)
            again = types.FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells)
            again.__kwdefaults__ = value.__kwdefaults__
            return again
        return value

    followed = Followed(known[id(model)])
    try:
        followed.step(changed(loss))
    finally:
        followed.close()
        torch.set_rng_state(state)
    return followed.sites
