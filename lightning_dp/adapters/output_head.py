"""Only the last layer: a linear probe, and the fewest ways for noise to reach the output."""

from collections.abc import Iterable
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.roles import modules_of


@final
class OutputHead(Adapter):
    """The modules that a network declares by a method `output_modules() -> list[nn.Module]`."""

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        heads = modules_of(module, "output_modules")
        if not heads:
            raise ValueError(
                f"adapter OutputHead: no part of {type(module).__name__} has a method output_modules(); give "
                "it one that returns its last layers, or choose adapters.matching.Matching"
            )
        return [parameter for head in heads for parameter in head.parameters()]
