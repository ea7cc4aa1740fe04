"""Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv 2106.09685), injected by peft.

Their two small matrices are ordinary linear layers, so every clipping engine clips them exactly.
"""

import re
from collections.abc import Iterable, Sequence
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter

BASE = "base_layer."
"""What injection puts into the name of a layer's own parameters."""


@final
class LoRA(Adapter):
    """W x + (scale / rank) · B A x with W frozen; A is random (from torch's generator), B starts at 0.

    Args:
        rank: r ≥ 1; 4 to 8 are usual.
        scale: the paper's α > 0; None for `rank`, which makes the factor 1.
        targets: linear layers to adapt: one regular expression that has to match the whole path
            ("blocks\\..*\\.qkv"), or a list of last path components (["qkv", "out"]).

    Raises:
        ValueError: an argument is out of range, or `targets` is no regular expression.
    """

    def __init__(
        self,
        *,
        rank: int = 4,
        scale: float | None = None,
        targets: str | Sequence[str] = r"(.*\.)?(attention|attn\w*)\..*",
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

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        return self.inject(module, self.candidates(module))

    def candidates(self, module: nn.Module) -> list[str]:
        """Paths of the linear layers that `targets` matches, in the module's order.

        Raises:
            ValueError: there are none.
        """
        linear = [path for path, layer in module.named_modules() if type(layer) is nn.Linear]
        found = [path for path in linear if self._pattern.fullmatch(path)]
        if not found:
            raise ValueError(
                f"LoRA.targets={self.targets!r} matches none of the linear layers of "
                f"{type(module).__name__}: {', '.join(linear[:8]) or 'there are none'}"
            )
        return found

    def inject(self, module: nn.Module, paths: Sequence[str]) -> list[nn.Parameter]:
        """Put A and B beside the layers at `paths`; return them, A before B, in that order.

        Raises:
            ValueError: peft is not installed.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError("adapter LoRA needs peft: pip install 'lightning-dp[adapters]'") from error
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.scale,  # type: ignore[arg-type]  # a factor; peft types it as whole
            lora_dropout=0.0,
            bias="none",
            # Whole paths: peft would take a list for endings.
            target_modules="|".join(re.escape(path) for path in paths),
        )
        inject_adapter_in_model(config, module)
        layers = dict(module.named_modules())
        return [
            layers[f"{path}.{part}"].weight for path in paths for part in ("lora_A.default", "lora_B.default")
        ]

    def facts(self) -> dict[str, str | float | int]:
        return {**super().facts(), "lora_rank": self.rank}


def _last_components(names: Sequence[str]) -> str:
    return rf"(.*\.)?({'|'.join(re.escape(name) for name in names)})"
