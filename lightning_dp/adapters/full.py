"""Everything trains."""

from collections.abc import Iterable
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter


@final
class Full(Adapter):
    """All parameters, those included that were frozen before."""

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        return module.parameters()
