"""Only the last layer: a linear probe, and the fewest ways for noise to reach the output."""

from collections.abc import Iterable
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.roles import parameters_of


@final
class OutputHead(Adapter):
    """The modules that a network declares by a method `output_modules() -> list[nn.Module]`."""

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        return parameters_of(module, "output_modules", adapter="OutputHead", returns="its last layers")
