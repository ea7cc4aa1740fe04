"""Only what steers: the AdaLN layers; scale and shift of the norms themselves are in `norm_affine.py`."""

from collections.abc import Iterable
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.roles import modules_of


@final
class ModulationOnly(Adapter):
    """The layers that turn a condition into scale, shift and gate; attention and feed-forward stay frozen.

    Args:
        encoders: whether what makes the condition (timestep embedding, context encoder) trains as well: all
            of θ_cond.
    """

    def __init__(self, *, encoders: bool = False) -> None:
        super().__init__()
        self.encoders = encoders

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        layers = modules_of(module, "modulation_modules")
        if self.encoders:
            layers += modules_of(module, "condition_modules")
        return [parameter for layer in layers for parameter in layer.parameters()]
