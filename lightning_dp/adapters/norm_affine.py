"""Scale and shift of the norms: FiLM adapters under DP (Tobaben et al. 2023, arXiv 2302.01190)."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.biases import NORMS


@final
class NormAffine(Adapter):
    """Scale and shift of each LayerNorm, GroupNorm and RMSNorm; all between them stays frozen.

    A norm without them, as AdaLN has it because the condition scales and shifts there, gets a scale of 1 and
    a shift of 0 of its own before it is applied (an `AddedAffine`): the fresh network is unchanged.

    The authors train a new last layer as well. A network that has its output already needs none; for classes
    that the public data lack, `several.Several` adds `embedder.Embedder`.
    """

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        # By identity: a module that is held twice is looked at under each of its names.
        everywhere = module.named_modules(remove_duplicate=False)
        norms = {path: layer for path, layer in everywhere if isinstance(layer, NORMS)}
        like = next(module.parameters(), torch.empty(0))
        added: dict[int, AddedAffine] = {}
        for path, layer in norms.items():
            if path and not any(True for _ in layer.parameters(recurse=False)):
                added.setdefault(id(layer), AddedAffine(layer).to(like.device, like.dtype))
                module.set_submodule(path, added[id(layer)])
        return [p for layer in (*norms.values(), *added.values()) for p in layer.parameters(recurse=False)]


class AddedAffine(nn.Module):
    """norm(x) ⊙ weight + bias beside a norm that has neither; weight starts at 1, bias at 0.

    Its parameters are no part of what other runs' weights hold: they always start anew.

    Args:
        norm: a LayerNorm or RMSNorm, whose last dimensions are scaled, or a GroupNorm, whose channels are.
    """

    def __init__(self, norm: nn.LayerNorm | nn.GroupNorm | nn.RMSNorm) -> None:
        super().__init__()
        self.norm = norm
        shape = (norm.num_channels,) if isinstance(norm, nn.GroupNorm) else norm.normalized_shape
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.norm, nn.GroupNorm):
            return self.norm(x) * self.weight + self.bias
        spatial = (-1, *[1] * (x.ndim - 2))
        return self.norm(x) * self.weight.reshape(spatial) + self.bias.reshape(spatial)  # of (C, 1, …)
