"""Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv 2106.09685).

Their two small matrices are ordinary linear layers, so every clipping engine clips them exactly. peft puts
them in, but for layers that are several in one (`fused_lora.py`).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from torch import nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.fused_lora import FusedLoRA
from lightning_dp.adapters.roles import fused_layers
from lightning_dp.extras import needed_by

BASE = "base_layer."
"""What injection puts into the name of a layer's own parameters."""
USUAL_TARGETS = r"(.*\.)?((attention|attn\w*)\..*|to_(q|k|v|out\.0))"
"""Queries, keys, values and output of each attention, ours and diffusers'."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A weight that can have a low-rank pair beside it.

    Attributes:
        path: of its linear layer.
        part: which of the layer's fused parts it is; "" where it is the whole layer.
        layer: path of the module that the linear layer belongs to, such as one attention.
        size: entries.
    """

    path: str
    part: str
    layer: str
    size: int

    @property
    def name(self) -> str:
        """Its path, with the part in place of the layer that holds it: "blocks.0.attention.q"."""
        return self.path if not self.part else f"{self.path.rpartition('.')[0]}.{self.part}".lstrip(".")


class Pair(NamedTuple):
    """The parameters of one low-rank adapter: A (r, inputs), B (outputs, r)."""

    a: nn.Parameter
    b: nn.Parameter


@final
class LoRA(Adapter):
    """W x + (scale / rank) · B A x with W frozen; A is random (from torch's generator), B starts at 0.

    Args:
        rank: r ≥ 1; 4 to 8 are usual.
        scale: the paper's α > 0; None for `rank`, which makes the factor 1.
        targets: linear layers to adapt: one regular expression that has to match the whole path
            ("blocks\\..*\\.qkv"), or a list of last path components (["qkv", "out"]). A part of a fused
            layer goes by the layer's path and by its own, as if it were a layer (["q", "v"]).
        convolutions: whether convolutions of two dimensions whose path matches are adapted as well.

    Raises:
        ValueError: an argument is out of range, or `targets` is no regular expression.
    """

    def __init__(
        self,
        *,
        rank: int = 4,
        scale: float | None = None,
        targets: str | Sequence[str] = USUAL_TARGETS,
        convolutions: bool = False,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"LoRA.rank is {rank}, but it must be at least 1: 4 to 8 are usual")
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"LoRA.scale is {scale}, but it must be above 0; null takes the rank")
        if not targets:
            raise ValueError('LoRA.targets is empty: ".*" adapts every linear layer')
        try:
            self._pattern = re.compile(targets if isinstance(targets, str) else _last_components(targets))
        except re.error as error:
            raise ValueError(f"LoRA.targets={targets!r} is not a regular expression: {error}") from error
        self.rank = rank
        self.scale = float(rank) if scale is None else scale
        self.targets = targets
        self._kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        return [weight for pair in self.inject(module, self.candidates(module)) for weight in pair]

    def candidates(self, module: nn.Module, *, split: bool = True) -> list[Matrix]:
        """The matrices that `targets` matches, in the module's order.

        Args:
            module: the network.
            split: whether each part of a fused layer is one by itself.

        Raises:
            ValueError: there are none.
        """
        fused, found = fused_layers(module) if split else {}, []
        layers = {path: layer for path, layer in module.named_modules() if type(layer) in self._kinds}
        for path, layer in layers.items():
            parts = fused.get(path, ("",))
            size = layer.get_parameter("weight").numel() // len(parts)
            for part in parts:
                matrix = Matrix(path=path, part=part, layer=_holder(module, path), size=size)
                if self._pattern.fullmatch(path) or self._pattern.fullmatch(matrix.name):
                    found.append(matrix)
        if not found:
            raise ValueError(
                f"LoRA.targets={self.targets!r} matches none of the linear layers of "
                f"{type(module).__name__}: {', '.join([*layers][:8]) or 'there are none'}"
            )
        return found

    def inject(self, module: nn.Module, matrices: Sequence[Matrix]) -> list[Pair]:
        """Put A and B beside each of the matrices; return them in that order.

        Raises:
            ValueError: peft is not installed.
        """
        whole = [matrix.path for matrix in matrices if not matrix.part]
        if whole:
            self._inject_by_peft(module, whole)
        fused = fused_layers(module)
        for path in dict.fromkeys(matrix.path for matrix in matrices if matrix.part):
            base = module.get_submodule(path)
            assert isinstance(base, nn.Linear)
            wrapped = FusedLoRA(
                base,
                parts=fused[path],
                adapted=[matrix.part for matrix in matrices if matrix.path == path],
                rank=self.rank,
                factor=self.scale / self.rank,
            )
            module.set_submodule(path, wrapped)
        return [
            Pair(*(module.get_parameter(f"{m.path}.lora_{ab}.{m.part or 'default'}.weight") for ab in "AB"))
            for m in matrices
        ]

    def _inject_by_peft(self, module: nn.Module, paths: Sequence[str]) -> None:
        with needed_by("adapter LoRA"):
            from peft import LoraConfig, inject_adapter_in_model
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.scale,  # type: ignore[arg-type]  # a factor; peft types it as whole
            lora_dropout=0.0,
            bias="none",
            # Whole paths: peft would take a list for endings.
            target_modules="|".join(re.escape(path) for path in paths),
        )
        inject_adapter_in_model(config, module)

    def facts(self) -> dict[str, str | float | int]:
        return {**super().facts(), "lora_rank": self.rank}


def _last_components(names: Sequence[str]) -> str:
    return rf"(.*\.)?({'|'.join(re.escape(name) for name in names)})"


def _holder(module: nn.Module, path: str) -> str:
    """Path of the nearest module around the layer at `path` that is more than a list."""
    outer = path.rpartition(".")[0]
    while outer and isinstance(module.get_submodule(outer), nn.ModuleList | nn.Sequential):
        outer = outer.rpartition(".")[0]
    return outer
