"""Low-rank pairs of which each step trains the first few: DyLoRA, and under DP DP-DyLoRA.

DyLoRA: Valipour et al. 2022, arXiv 2210.07558; with DP: Xu et al. 2024, arXiv 2405.06368. A step draws a rank
b ≤ R; the first b rows of A and columns of B make the output, (scale / b) · B↓b A↓b x. So any rank up to R
can be used once the run is over, at no further ε.

The draw has to be public and the same for all units of a step, over physical batches and ranks of processes:
it is a function of the number of the step and of a seed in the configuration, never of data, of a secret or
of torch's generators.
"""

import hashlib
from bisect import bisect
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.lora import USUAL_TARGETS, LoRA, Pair
from lightning_dp.adapters.several import Several


class Cut:
    """How many rows of all pairs count: one object, which all layers of an adapter hold.

    Attributes:
        training: b of the step; all outside of a fit.
        judging: of a module in evaluation mode.
    """

    def __init__(self, rank: int) -> None:
        self.training = self.judging = rank


class TruncatedLinear(nn.Linear):
    """A pair's A, whose outputs beyond the rank b in use are 0, and the others R / b times as large.

    A gradient through it is exactly 0 for those rows of A and columns of B, unit by unit.

    Args:
        whole: A of all R rows, whose weight becomes this layer's.
        cut: says b.
    """

    def __init__(self, whole: nn.Linear, *, cut: Cut) -> None:
        super().__init__(whole.in_features, whole.out_features, bias=False, device="meta")
        self.weight = whole.weight
        self.cut = cut

    @property
    def rank(self) -> int:
        """b."""
        return self.cut.training if self.training else self.cut.judging

    def forward(self, x: Tensor) -> Tensor:
        inside = torch.arange(self.out_features, device=x.device) < self.rank  # (R,)
        return super().forward(x) * (inside * (self.out_features / self.rank)).to(x.dtype)  # (…, R)


@final
class DyLoRA(Adapter):
    """LoRA that serves every rank from 1 to `rank`.

    Clipping is of the step's gradient, which is 0 outside of the rank's block, and noise is added to all that
    trains. Outside of the block it is taken off again before the optimizer sees it: which block it is was
    public before the step, so this is post-processing and costs nothing, and it is what a mechanism of the
    block alone would have published. An optimizer's own momentum still acts there.

    Args:
        rank: R ≥ 1.
        scale: the paper's α > 0; None for `rank`.
        targets: as in `LoRA`.
        geometric: p in (0, 1): rank b is drawn with a weight of (1 − p)^(b − 1); None draws all alike.
        seed: ≥ 0, of the draws; as public as the rest of the configuration.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        scale: float | None = None,
        targets: str | Sequence[str] = USUAL_TARGETS,
        geometric: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if geometric is not None and not 0 < geometric < 1:
            raise ValueError(
                f"DyLoRA.geometric is {geometric}, but it is a chance in (0, 1); null draws all ranks alike"
            )
        if seed < 0:
            raise ValueError(f"DyLoRA.seed is {seed}, but it must be at least 0")
        self.lora = LoRA(rank=rank, scale=scale, targets=targets)
        self.rank = rank
        self.geometric = geometric
        self.seed = seed
        weights = [(1 - (geometric or 0.0)) ** number for number in range(rank)]
        self._up_to = [sum(weights[: number + 1]) / sum(weights) for number in range(rank)]
        self._cut = Cut(rank)
        self._pairs: list[Pair] = []

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        matrices = self.lora.candidates(module)
        self._pairs = self.lora.inject(module, matrices)
        for matrix in matrices:
            holder: Any = module.get_submodule(f"{matrix.path}.lora_A")
            name = matrix.part or "default"
            holder[name] = TruncatedLinear(holder[name], cut=self._cut)
        return [weight for pair in self._pairs for weight in pair]

    def rank_of(self, step: int) -> int:
        """b of an optimizer step, counted from 0."""
        # A hash and no generator: a seeded one in a private fit is refused, and rightly.
        digest = hashlib.sha256(f"{self.seed} {step}".encode()).digest()
        return 1 + bisect(self._up_to, int.from_bytes(digest[:8]) / 2**64, hi=self.rank - 1)

    def begin_step(self, step: int) -> None:
        self._cut.training = self.rank_of(step)

    def mask_gradients(self) -> None:
        b = self._cut.training
        for pair in self._pairs:
            for outside in (
                None if pair.a.grad is None else pair.a.grad[b:],
                None if pair.b.grad is None else pair.b.grad[:, b:],
            ):
                if outside is not None:
                    outside.zero_()

    def use(self, rank: int) -> None:
        """Sample and judge at this rank from now on.

        Raises:
            ValueError: there is none such.
        """
        if not 1 <= rank <= self.rank:
            raise ValueError(f"rank is {rank}, but this DyLoRA has ranks from 1 to {self.rank}.")
        self._cut.judging = rank

    def facts(self) -> dict[str, str | float | int]:
        draw = "uniform" if self.geometric is None else f"geometric {self.geometric:g}"
        return {**super().facts(), "lora_rank": self.rank, "lora_rank_drawn": draw}


def use_rank(adapter: Adapter | None, rank: int) -> None:
    """Sample and judge at this rank from now on.

    Raises:
        ValueError: the adapter, or each part of several, was trained at one rank or none.
    """
    parts = adapter.adapters if isinstance(adapter, Several) else [adapter]
    found = [part for part in parts if isinstance(part, DyLoRA)]
    if not found:
        trained_by = "no adapter" if adapter is None else type(adapter).__name__
        raise ValueError(
            f"rank is {rank}, but the run was trained by {trained_by}, and only adapters.DyLoRA has ranks to "
            "choose from: leave it out."
        )
    for part in found:
        part.use(rank)
