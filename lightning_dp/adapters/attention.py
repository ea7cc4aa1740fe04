"""Whole transformer blocks and the condition's embedder: DP-LDM (Liu et al. 2023, arXiv 2305.15759)."""

import sys
from collections.abc import Iterable, Sequence
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.roles import modules_of

_STAGES = ("down_blocks.", "mid_block.", "up_blocks.")


@final
class Attention(Adapter):
    """Norms, projections, attention and feed-forward of transformer blocks; convolutions stay frozen.

    A block is what a network declares in `transformer_modules()`; of diffusers' networks a whole spatial
    transformer, or an attention block with its norm where there are none.

    Args:
        blocks: which ones, counted from 0 at the network's input, negative from its output; None is all.
        embedder: whether what embeds the class or the context trains too, as networks declare it in
            `embedder_modules()`.
    """

    def __init__(self, *, blocks: Sequence[int] | None = None, embedder: bool = True) -> None:
        super().__init__()
        if blocks is not None and not blocks:
            raise ValueError("Attention.blocks is empty: name at least one, or null for all")
        self.blocks = blocks
        self.embedder = embedder

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        found = transformer_blocks(module)
        if not found:
            raise ValueError(
                f"adapter Attention: no part of {type(module).__name__} is a transformer block; give its "
                "blocks a method transformer_modules(), or choose adapters.matching.Matching"
            )
        for index in self.blocks or ():
            if not -len(found) <= index < len(found):
                raise ValueError(
                    f"Attention.blocks has {index}, but {type(module).__name__} has {len(found)} transformer "
                    f"blocks: choose from 0 to {len(found) - 1}"
                )
        chosen = found if self.blocks is None else [found[index] for index in self.blocks]
        if self.embedder:
            chosen = [*chosen, *modules_of(module, "embedder_modules")]
        return [parameter for part in chosen for parameter in part.parameters()]

    def facts(self) -> dict[str, str | float | int]:
        chosen = "all" if self.blocks is None else ", ".join(str(number) for number in self.blocks)
        return {**super().facts(), "blocks": chosen}


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost transformer blocks inside of `module`, from its input to its output."""
    declared = {id(block) for block in modules_of(module, "transformer_modules")}
    kinds = _of_diffusers()
    found: dict[str, nn.Module] = {}
    for path, layer in module.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if not inside and (id(layer) in declared or isinstance(layer, kinds)):
            found[path] = layer
    # diffusers registers the middle of a UNet last.
    return [found[path] for path in sorted(found, key=_stage)]


def _of_diffusers() -> tuple[type, ...]:
    """Its transformers and attention blocks; none where nothing has imported them yet."""
    names = {
        "diffusers.models.transformers.transformer_2d": "Transformer2DModel",
        "diffusers.models.attention_processor": "Attention",
    }
    return tuple(getattr(sys.modules[path], name) for path, name in names.items() if path in sys.modules)


def _stage(path: str) -> int:
    return next((number for number, stage in enumerate(_STAGES) if stage in path), -1)
