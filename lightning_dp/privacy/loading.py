"""How a private fit's loader reads: the user's collation and workers, under secret random numbers.

Carried over from the loader that is replaced: `collate_fn`, `num_workers`, `worker_init_fn`, `pin_memory`,
`multiprocessing_context`, `persistent_workers`, `prefetch_factor` and `timeout`. Not carried over: `sampler`,
`shuffle`, `batch_size` and `drop_last`, since batches are Poisson samples; `generator`, which seeds the
shuffling and the workers; `in_order=False`, as batches have to come in the order in which they were drawn.

Each worker process is filled with entropy of its own after `worker_init_fn` has run, so the usual
`np.random.seed(torch.initial_seed() % 2**32)` in it is without effect. What a data set or a collation seeds
later is refused, as it is without workers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_dp.privacy.randomness import SecretRandomness

PLACE = "reading a batch (the data set or collate_fn)"
_OF_WORKERS = ("multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout")

_of_this_worker: SecretRandomness | None = None


@dataclass(frozen=True)
class _Start:
    """Runs in a new worker process; a class, as spawned workers get it pickled."""

    own: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        global _of_this_worker
        if self.own is not None:
            self.own(worker)
        _of_this_worker = SecretRandomness()
        _of_this_worker.begin()
        _of_this_worker.watching(PLACE).__enter__()  # for as long as the process lives


@dataclass(frozen=True)
class _Collate:
    """The user's collation, after which a worker's generators are looked at."""

    own: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        batch = self.own(items)
        if batch is None:
            number = f" {len(items)} units" if isinstance(items, list) else " a batch"
            raise RuntimeError(
                f"collate_fn returned None for{number}: return the rows of every unit it is given, also of "
                "those that look broken, as which units are broken is private"
            )
        if _of_this_worker is not None:
            _of_this_worker.check(PLACE)
            _of_this_worker.advance()
        return batch


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The options of a loader that say how it reads, not what.

    Attributes:
        collate_fn: from items to a batch; None is torch's default.
        num_workers: ≥ 0.
        worker_init_fn: called in each worker with its number.
        pin_memory: as in a DataLoader.
        of_workers: further options of a DataLoader that has workers.
    """

    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    worker_init_fn: Callable[[int], None] | None = None
    pin_memory: bool = False
    of_workers: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, loader: DataLoader[Any]) -> "Reading":
        """Those of a loader that is to be replaced."""
        workers = tuple((name, getattr(loader, name)) for name in _OF_WORKERS if hasattr(loader, name))
        return cls(
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            pin_memory=loader.pin_memory,
            of_workers=workers if loader.num_workers else (),
        )

    def loader(self, dataset: Dataset[Any], **batches: Any) -> DataLoader[Any]:
        """A DataLoader that reads so; `batches` says which items make a batch."""
        options: dict[str, Any] = dict(self.of_workers)
        if self.num_workers:
            options["worker_init_fn"] = _Start(self.worker_init_fn)
        return DataLoader(
            dataset,
            collate_fn=_Collate(self.collate_fn or default_collate),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            **options,
            **batches,
        )


def watched(batches: Iterator[Any], randomness: SecretRandomness | None) -> Iterator[Any]:
    """The batches, each read under secret random numbers only; None is outside of a private fit."""
    end = object()
    while True:
        if randomness is None:
            batch = next(batches, end)
        else:
            with randomness.watching(PLACE):
                batch = next(batches, end)
            randomness.check(PLACE)
        if batch is end:
            return
        yield batch
