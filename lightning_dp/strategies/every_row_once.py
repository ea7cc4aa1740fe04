"""Evaluation by several processes: each row is scored by one of them, and none twice.

The sampler that Lightning puts in gives every rank as many rows and repeats some for it, which moves the
figures by as much as methods differ.
"""

from collections.abc import Iterator, Sized
from typing import Any, final

from torch import distributed as dist
from torch.utils.data import DistributedSampler


@final
class EveryRowOnce(DistributedSampler[int]):
    """Rank r of W takes rows r, r + W, r + 2W … in order; ranks differ by one row at most.

    Metrics have to add up over ranks, as torchmetrics' do, and no rank may wait for another within a batch.

    Args:
        dataset: of N ≥ W rows.

    Raises:
        ValueError: there are more ranks than rows, so that one had nothing to score.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset, shuffle=False)
        if len(dataset) < self.num_replicas:
            raise ValueError(
                f"{len(dataset)} rows can't be shared by {self.num_replicas} processes: evaluate them with "
                f"--trainer.devices {max(1, len(dataset))} or fewer"
            )

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self._num_rows, self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, self._num_rows, self.num_replicas))

    @property
    def _num_rows(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)


def evaluation_sampler(dataset: Any) -> EveryRowOnce | None:
    """For the `sampler` of an evaluation's DataLoader: None, which is all rows in order, in one process."""
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return EveryRowOnce(dataset) if together else None
