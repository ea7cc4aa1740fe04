"""What becomes of the matrices that were not chosen, where they are not to stay as a public set left them."""

from collections.abc import Iterable
from typing import Literal
from zlib import crc32

import torch
from torch import Tensor, nn

from lightning_dp.adapters.lora import Matrix
from lightning_dp.adapters.roles import fused_layers

Unchosen = Literal["pretrained", "random"]
_DEVIATION = 0.02


def randomise(net: nn.Module, matrices: Iterable[Matrix]) -> list[str]:
    """Replace pretrained weights by N(0, 0.02²), always by the same numbers for the same matrix.

    DP-SAPF's variant "Noisy" (arXiv 2605.30312), which asks what the public weights that don't train are
    worth. Which matrices they are is a release's answer, and the numbers are public: this costs nothing.

    Returns:
        The names of the parameters.
    """
    names = []
    for matrix in matrices:
        weight = rows_of(net, matrix)
        generator = torch.Generator().manual_seed(crc32(matrix.name.encode()))
        with torch.no_grad():
            weight.copy_(_DEVIATION * torch.randn(weight.shape, generator=generator))
        names.append(weight_name(net, matrix))
    return list(dict.fromkeys(names))


def weight_name(net: nn.Module, matrix: Matrix) -> str:
    """The parameter that holds a matrix's pretrained weight, with a low-rank pair beside it or without."""
    layer = net.get_submodule(matrix.path)
    return f"{matrix.path}.base_layer.weight" if hasattr(layer, "base_layer") else f"{matrix.path}.weight"


def rows_of(net: nn.Module, matrix: Matrix) -> Tensor:
    """The pretrained weight of a matrix; of a part of a fused layer its rows."""
    weight = net.get_parameter(weight_name(net, matrix)).data
    if not matrix.part:
        return weight
    parts = fused_layers(net)[matrix.path]
    return weight.chunk(len(parts))[list(parts).index(matrix.part)]
