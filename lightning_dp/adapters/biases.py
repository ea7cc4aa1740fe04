"""Biases and norms: the smallest set that every network has (BitFit, Zaken et al. 2022, arXiv 2106.10199)."""

from collections.abc import Iterable, Iterator
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@final
class Biases(Adapter):
    """Every layer's bias, and scale and shift of the norms.

    Args:
        norms: whether the norms' scales train as well.
    """

    def __init__(self, *, norms: bool = True) -> None:
        super().__init__()
        self.norms = norms

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        return self._found(module)

    def _found(self, module: nn.Module) -> Iterator[nn.Parameter]:
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if name == "bias" or (self.norms and isinstance(layer, NORMS)):
                    yield parameter
