"""Data sets that differ in one unit: views of one pool of units, slot by slot."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from replay.draws import KeyedCoins, KeyedDraws


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One unit of a data set.

    Attributes:
        key: whose coins and draws it has.
        item: which item of the pool it shows.
        spoil: what each of its numbers is replaced by, or None.
        present: False gives its row a weight of 0 wherever its coin falls.
    """

    key: int
    item: int
    spoil: float | None = None
    present: bool = True


Slots = tuple[Slot, ...]


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A data set one unit away from D.

    Attributes:
        name: for reports.
        edit: from D's slots, the key of the unit that D has and D′ may not, and the key of the one that
            only D′ may have, to the slots of D′.
        units_moved: by how many times the declared sensitivity a mechanism's raw input may move.
        like: the run ("D" or an earlier neighbour) whose raw inputs it must have but for rounding.
    """

    name: str
    edit: Callable[[Slots, int, int], Slots]
    units_moved: float = 1.0
    like: str | None = None


def _added(slots: Slots, new: int, spoil: float | None = None) -> Slots:
    return (*slots, Slot(key=new, item=new, spoil=spoil))


SAME = Neighbour(name="the same", edit=lambda slots, old, new: slots, units_moved=0.0, like="D")
REMOVED = Neighbour(
    name="one removed", edit=lambda slots, old, new: tuple(slot for slot in slots if slot.key != old)
)
BLANK = Neighbour(
    name="one of weight 0",
    edit=lambda slots, old, new: tuple(replace(slot, present=slot.key != old) for slot in slots),
    like="one removed",
)
ADDED = Neighbour(name="one added", edit=lambda slots, old, new: _added(slots, new))
HUGE = Neighbour(name="a huge one added", edit=lambda slots, old, new: _added(slots, new, 1e30))
NOT_A_NUMBER = Neighbour(
    name="a NaN added", edit=lambda slots, old, new: _added(slots, new, float("nan")), like="D"
)
REPLACED = Neighbour(
    name="one replaced",
    edit=lambda slots, old, new: tuple(
        replace(slot, item=new) if slot.key == old else slot for slot in slots
    ),
    units_moved=2.0,  # one removed and one added
)
ALL = (SAME, REMOVED, BLANK, ADDED, HUGE, NOT_A_NUMBER, REPLACED)
FEW = (REMOVED, HUGE, NOT_A_NUMBER)


@dataclass
class Fetches:
    """What a view hands to whoever trains.

    Attributes:
        draws: told whose rows are fetched.
        coins: of the sampler, once training has begun; they count logical batches.
        keys: of each batch, in the order of fetching.
    """

    draws: KeyedDraws
    coins: KeyedCoins | None = None
    keys: deque[list[int]] = field(default_factory=deque)


def show(data: LightningDataModule, slots: Slots, fetches: Fetches) -> Dataset:
    """Let `data` have exactly these slots as its train set, wherever it keeps that; return the view.

    Raises:
        ValueError: the pool is too small, or the data module keeps its train set out of reach.
    """
    data.setup("fit")
    pool = data.train_dataloader().dataset
    largest = max(slot.item for slot in slots)
    if len(pool) <= largest:
        raise ValueError(f"the data module has {len(pool)} train units; the harness needs {largest + 1}")
    view = _view(pool, slots, fetches)
    for name, value in list(vars(data).items()):
        if value is pool:
            setattr(data, name, view)
    if data.train_dataloader().dataset is not view:
        raise ValueError("keep the train set in an attribute that train_dataloader reads")
    return view


def _view(pool: Dataset, slots: Slots, fetches: Fetches) -> Dataset:
    """Of the pool's own class, as others may ask for that, but with the items of the slots."""

    class View(type(pool)):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(slots)

        def __getitem__(self, index: int) -> Any:
            return self.__getitems__([index])[0]

        def __getitems__(self, indices: Sequence[int]) -> Any:
            chosen = [slots[index] for index in indices]
            fetches.draws.end()  # of a release that reads batch after batch
            fetches.keys.append([slot.key for slot in chosen])
            if hasattr(pool, "__getitems__"):
                items = self._read(chosen, lambda: pool.__getitems__([slot.item for slot in chosen]))
            else:
                items = [self._read([slot], lambda slot=slot: pool[slot.item]) for slot in chosen]
            for place, slot in enumerate(chosen):
                if slot.spoil is not None:
                    items = _spoilt(items, place, of=len(chosen), value=slot.spoil)
            if fetches.coins is None:  # before training, what a release draws belongs to the units it reads
                fetches.draws.begin("release", keys=[slot.key for slot in chosen])
            return items

        def _read(self, chosen: list[Slot], read: Callable[[], Any]) -> Any:
            batch_number = -1 if fetches.coins is None else fetches.coins.draws
            fetches.draws.begin("read", batch_number, keys=[slot.key for slot in chosen])
            try:
                return read()
            finally:
                fetches.draws.end()

    view = View.__new__(View)
    view.__dict__ = pool.__dict__
    return view


def _spoilt(items: Any, place: int, *, of: int, value: float) -> Any:
    """The batch with every number of one unit replaced; whole numbers and masks stay."""
    if isinstance(items, list):  # of items, one a unit
        return [
            tree_map(lambda leaf: _filled(leaf, value), item) if at == place else item
            for at, item in enumerate(items)
        ]

    def rows(leaf: Any) -> Any:  # of a batch that is joined already
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        leaf, each = leaf.clone(), len(leaf) // of
        leaf[place * each : (place + 1) * each] = value
        return leaf

    return tree_map(rows, items)


def _filled(leaf: Any, value: float) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.full_like(leaf, value)
    return value if isinstance(leaf, float) else leaf
