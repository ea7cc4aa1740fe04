"""Several choices at once."""

from collections.abc import Iterable, Sequence
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter


@final
class Several(Adapter):
    """The union of what its parts choose, in their order: [LoRA, OutputHead] for instance.

    Args:
        adapters: at least one.
    """

    def __init__(self, *, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        if not adapters:
            raise ValueError("Several.adapters is empty: name at least one")
        self.adapters = list(adapters)

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        return [parameter for adapter in self.adapters for parameter in adapter.choose(module)]

    def facts(self) -> dict[str, str | float | int]:
        names = "+".join(str(adapter.facts()["adapter"]) for adapter in self.adapters)
        merged = {name: value for adapter in self.adapters for name, value in adapter.facts().items()}
        return {**merged, **super().facts(), "adapter": names}
