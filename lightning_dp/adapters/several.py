"""Several choices at once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from torch import nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit


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

    def preparations(
        self, module: Any, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        facts: dict[str, Any] = {"unit": unit, "target_epsilon": target_epsilon, "delta": delta}
        return [one for adapter in self.adapters for one in adapter.preparations(module, **facts)]

    def begin_fit(self, module: Any) -> None:
        for adapter in self.adapters:
            adapter.begin_fit(module)

    def begin_step(self, step: int) -> None:
        for adapter in self.adapters:
            adapter.begin_step(step)

    def mask_gradients(self) -> None:
        for adapter in self.adapters:
            adapter.mask_gradients()

    def replaced(self) -> list[str]:
        return [name for adapter in self.adapters for name in adapter.replaced()]

    def left_frozen(self, state: Mapping[str, Any]) -> list[str]:
        return [name for adapter in self.adapters for name in adapter.left_frozen(state)]

    def report(self) -> dict[str, Any]:
        return {name: value for adapter in self.adapters for name, value in adapter.report().items()}

    def facts(self) -> dict[str, str | float | int]:
        names = "+".join(str(adapter.facts()["adapter"]) for adapter in self.adapters)
        merged = {name: value for adapter in self.adapters for name, value in adapter.facts().items()}
        return {**merged, **super().facts(), "adapter": names}
