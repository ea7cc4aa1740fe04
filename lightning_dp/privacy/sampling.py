"""Poisson sampling over privacy units: logical batches, and the physical ones that carry them.

Each unit is in each logical batch with probability q, independently; batches vary in size and may be
empty. A logical batch that does not fit memory is cut into physical ones; an empty one becomes a
single padding unit of weight 0, so that the step is still taken, noised and charged.

The draws come from the operating system's entropy and can't be seeded: amplification by sampling
holds only while nobody can know who was in a batch.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_dp.privacy.loading import Reading, watched
from lightning_dp.privacy.noise import entropy_bits
from lightning_dp.privacy.randomness import SecretRandomness
from lightning_dp.privacy.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class PhysicalBatch:
    """A part of one logical batch that is computed at once.

    Attributes:
        indices: at least one index of a unit.
        weights: 1.0 for a sampled unit, 0.0 for padding; as long as `indices`.
        last: True on the part after which the optimizer steps.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    last: bool


class PoissonSampler:
    """Endless logical batches over `num_units` units at `sampling_rate` in (0, 1].

    Of `world_size` ranks each draws from its own units only, those whose index leaves `rank` when divided
    by `world_size`: the shards are disjoint, and their union is Poisson over all units.
    """

    def __init__(self, *, num_units: int, sampling_rate: float, rank: int = 0, world_size: int = 1) -> None:
        if not 0 < sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1], not {sampling_rate}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, not {rank}")
        self._sampling_rate = sampling_rate
        self._units = np.arange(rank, num_units, world_size)
        self._generator = np.random.default_rng(entropy_bits())

    def draw(self) -> list[int]:
        """The sorted indices of one logical batch, or of this rank's part of it."""
        included = self._generator.random(len(self._units)) < self._sampling_rate
        result: list[int] = self._units[included].tolist()
        return result


def count_parts(logical: list[int], *, physical_batch_size: int | None) -> int:
    """Physical batches of at most `physical_batch_size` units (None: any number) that a logical one needs."""
    return max(1, math.ceil(len(logical) / (physical_batch_size or max(1, len(logical)))))


def split(
    logical: list[int], *, physical_batch_size: int | None, parts: int | None = None
) -> Iterator[PhysicalBatch]:
    """Cut a logical batch into physical ones of at most `physical_batch_size` units (None: one).

    Args:
        logical: indices, perhaps none.
        physical_batch_size: ≥ 1, or None.
        parts: how many to yield; those without a unit of their own are a padding one. None is as many as
            are needed.
    """
    size = physical_batch_size or max(1, len(logical))
    parts = parts or count_parts(logical, physical_batch_size=physical_batch_size)
    for number in range(parts):
        part = tuple(logical[number * size : (number + 1) * size])
        yield PhysicalBatch(
            indices=part or (0,), weights=(1.0,) * len(part) or (0.0,), last=number == parts - 1
        )


class PoissonLoader:
    """Stands in for a train DataLoader: same dataset and collation, Poisson batches over its items.

    One pass is ⌈1/q⌉ logical batches, an "epoch" of the same expected size as the data. `pending`
    holds, in order, the descriptions of the physical batches that were yielded and not yet trained
    on: a trainer may fetch ahead, so whoever trains takes them from the left, one per batch.

    It has no length: how many physical batches a pass takes is random. Ranks make equally many of each
    logical batch, since trainers count on it: one that has too few units adds padding.

    Args:
        dataset: map-style, with a length.
        sampling_rate: q in (0, 1].
        physical_batch_size: ≥ 1 units at once, or None for all of a logical batch.
        reading: collation and workers.
        ranks: the processes that share the units.

    Attributes:
        randomness: of the fit, once there is one; what reads is then held to it.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        sampling_rate: float,
        physical_batch_size: int | None = None,
        reading: Reading | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self.dataset = dataset
        self.pending: deque[PhysicalBatch] = deque()
        self.randomness: SecretRandomness | None = None
        self._physical_batch_size = physical_batch_size
        self._logical_per_pass = math.ceil(1 / sampling_rate)
        self._sampler = PoissonSampler(
            num_units=len(dataset),  # type: ignore[arg-type]
            sampling_rate=sampling_rate,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
        )
        self._reading = reading or Reading()
        self._drawn: deque[PhysicalBatch] = deque()
        self._loader: DataLoader[Any] | None = None

    def replaced(self) -> DataLoader[Any]:
        """The data set and the collation of the loader that this one stands for; nothing is read."""
        return DataLoader(self.dataset, collate_fn=self._reading.collate_fn)

    def __iter__(self) -> Iterator[Any]:
        self.pending.clear()
        if self._loader is None:  # kept from pass to pass, as its workers may be
            self._loader = self._reading.loader(self.dataset, batch_sampler=_Draws(self))
        batches = iter(self._loader)
        drawn = self._drawn
        for batch in watched(batches, self.randomness):
            self.pending.append(drawn.popleft())
            yield batch

    def draw(self) -> Iterator[list[int]]:
        """The indices of each physical batch of a new pass; workers ask for more than were yielded."""
        self._drawn = deque()
        return self._parts(self._drawn)

    def _parts(self, drawn: deque[PhysicalBatch]) -> Iterator[list[int]]:
        size = self._physical_batch_size
        for _ in range(self._logical_per_pass):
            logical = self._sampler.draw()
            parts = self._ranks.most(count_parts(logical, physical_batch_size=size)) if size else 1
            for part in split(logical, physical_batch_size=size, parts=parts):
                drawn.append(part)
                yield list(part.indices)

    def collated(self, indices: Sequence[int]) -> Any:
        """The batch of some units, read again in this process, as the dataset's workers would make it."""
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(list(indices)) if fetch else [self.dataset[index] for index in indices]
        return (self._reading.collate_fn or default_collate)(items)

    def in_order(self, *, units_per_batch: int, sampling_rate: float = 1.0) -> DataLoader[Any]:
        """Every unit of the data set once, or a Poisson sample of them, in order, collated as for training.

        The sample is drawn once: whoever reads it twice reads the same units, as one release pays for.
        """
        if sampling_rate == 1:
            return self._reading.loader(self.dataset, batch_size=units_per_batch)
        num_units: int = len(self.dataset)  # type: ignore[arg-type]
        drawn = PoissonSampler(num_units=num_units, sampling_rate=sampling_rate).draw()
        starts = range(0, len(drawn), units_per_batch)
        batches = [drawn[start : start + units_per_batch] for start in starts]
        return self._reading.loader(self.dataset, batch_sampler=batches)


@dataclass(frozen=True)
class _Draws:
    """What a DataLoader iterates once a pass."""

    loader: PoissonLoader

    def __iter__(self) -> Iterator[list[int]]:
        return self.loader.draw()
