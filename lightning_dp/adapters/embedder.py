"""What embeds the class or the context, for private classes that the public data lack or have as one."""

from collections.abc import Iterable
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.roles import parameters_of


@final
class Embedder(Adapter):
    """The modules that a network declares by a method `embedder_modules() -> list[nn.Module]`.

    Beside low-rank pairs (`several.Several`): these alone can't tell classes apart that the public data had
    not, or had as one.
    """

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        return parameters_of(
            module, "embedder_modules", adapter="Embedder", returns="what embeds the condition"
        )
