"""LoRA beside a linear layer that does the work of several, such as queries, keys and values.

peft would give such a layer one pair, which ties its parts together; here each part has a pair of its own.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn


@final
class FusedLoRA(nn.Module):
    """base(x), with (scale / rank) · B A x added to the outputs of the parts that have a pair.

    Names of parameters are peft's, with the part's in place of the adapter's.

    Args:
        base_layer: frozen, with an equal share of outputs for each part.
        parts: names of all parts, in the order of the outputs.
        adapted: those that get a pair.
        rank: r ≥ 1.
        factor: scale / rank.
    """

    def __init__(
        self, base_layer: nn.Linear, *, parts: Sequence[str], adapted: Sequence[str], rank: int, factor: float
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.parts = tuple(parts)
        self.factor = factor
        self.rows = base_layer.out_features // len(parts)  # of one part
        inputs = base_layer.in_features
        self.lora_A = nn.ModuleDict({part: nn.Linear(inputs, rank, bias=False) for part in adapted})
        self.lora_B = nn.ModuleDict({part: nn.Linear(rank, self.rows, bias=False) for part in adapted})
        for part in adapted:  # as the paper and peft start
            nn.init.kaiming_uniform_(self.lora_A.get_parameter(f"{part}.weight"), a=math.sqrt(5))
            nn.init.zeros_(self.lora_B.get_parameter(f"{part}.weight"))
        self.to(device=base_layer.weight.device, dtype=base_layer.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        outputs = list(self.base_layer(x).split(self.rows, dim=-1))  # each (…, rows)
        for number, part in enumerate(self.parts):
            if part in self.lora_A:
                low_rank = self.lora_B[part](self.lora_A[part](x))  # (…, rows)
                outputs[number] = outputs[number] + self.factor * low_rank
        return torch.cat(outputs, dim=-1)  # (…, parts · rows)
