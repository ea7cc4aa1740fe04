"""The processes that train one model together: the first one pays and draws the noise, all end equal.

Scope: torch.distributed as it was set up by somebody else, or a single process where nobody did.
Sampling disjoint shards is `sampling`'s part.
"""

from collections.abc import Callable
from typing import Any, TypeVar, final

import torch
from torch import Tensor, distributed as dist

from lightning_dp.privacy.noise import NoiseSource

T = TypeVar("T")


class RankZeroError(RuntimeError):
    """What the other ranks raise when rank 0 could not do what it does for all; its error says why."""


@final
class Ranks:
    """The default process group, or one process alone.

    Attributes:
        rank: of this process, from 0.
        world_size: ≥ 1.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world_size = dist.get_world_size() if together else 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that holds the ledger's lease and draws the noise."""
        return self.rank == 0

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 only and give every rank its answer, or its failure.

        Args:
            action: returns something that can be pickled.

        Raises:
            RankZeroError: on the other ranks, where `action` raised; rank 0 raises its own error.
        """
        if self.world_size == 1:
            return action()
        outcome: list[Any] = [None, None]
        error: BaseException | None = None
        if self.is_first:
            try:
                outcome[0] = action()
            except Exception as caught:
                error = caught
                outcome[1] = f"{type(caught).__name__}: {caught}"
        dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        if outcome[1] is not None:
            raise RankZeroError(outcome[1])
        result: T = outcome[0]
        return result

    def gather(self, own: T) -> list[T]:
        """What every rank holds, in the order of ranks; something that can be pickled."""
        if self.world_size == 1:
            return [own]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, own)
        return values

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return max(self.gather(number))

    def total(self, own: Tensor) -> Tensor:
        """Σ over ranks of a tensor, which may be overwritten."""
        if self.world_size > 1:
            dist.all_reduce(own)
        return own

    def release(self, sums: dict[str, Tensor], *, noise: NoiseSource, scale: float) -> dict[str, Tensor]:
        """Σ over ranks of `sums` plus noise of standard deviation `scale`, the same bits on every rank.

        The noise is drawn once, by rank 0, on the total; what the other ranks hold before the answer
        arrives never leaves them.

        Args:
            sums: fp32 clipped sums of this rank's units by parameter name, the same names and shapes on
                every rank, all on one device; may be overwritten.
            noise: rank 0's is used.
            scale: > 0, noise multiplier times sensitivity.
        """
        if self.world_size == 1:
            return {name: noise.add_to(value, scale=scale) for name, value in sums.items()}
        flat = torch.cat([value.flatten() for value in sums.values()])  # one message instead of many
        dist.reduce(flat, dst=0)
        if self.is_first:
            noise.add_to(flat, scale=scale)
        dist.broadcast(flat, src=0)
        parts = flat.split([value.numel() for value in sums.values()])
        return {name: part.view_as(sums[name]) for name, part in zip(sums, parts, strict=True)}
