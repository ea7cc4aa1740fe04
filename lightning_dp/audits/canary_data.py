"""Made-up units of a recipe's shapes, some of them canaries: the data of an audit."""

import copy
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_dp.audits.canary_module import CANARY
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.protocols import DeclaresUnit, MakesItems, provides


@final
class CanaryData(LightningDataModule):
    """`num_others` made-up units and after them one for each canary, read as those of a data module are.

    No row of the data module's is read: items are its `synthetic_items`.

    Args:
        source: set up, with `synthetic_items`, whose items and batches are mappings.
        num_others: ≥ 2.
        num_canaries: m ≥ 1.

    Raises:
        ValueError: the data module can't make up such items.
    """

    dataset_id = "made up for an audit"
    public = True

    def __init__(self, source: LightningDataModule, *, num_others: int, num_canaries: int) -> None:
        super().__init__()
        maker: object = source
        if not provides(maker, MakesItems):
            raise ValueError(
                f"{type(source).__name__} has no synthetic_items(num_items), so an audit has no made-up "
                "units of its shapes: add that method, which returns items as __getitem__ does, from public "
                "facts only"
            )
        self._source, self._maker = source, maker
        loader = source.train_dataloader()
        told = _declared(source)
        self._rows = told.rows_per_unit if told is not None else 1
        self._collate: Callable[[list[Any]], Any] = loader.collate_fn
        self._numbers = [-1] * num_others + list(range(num_canaries))
        made_up = maker.synthetic_items(len(self._numbers))
        if not all(isinstance(item, dict) for item in made_up):
            raise ValueError(
                f"{type(source).__name__}.synthetic_items gives items that are no dicts, so none can be "
                "marked as a canary: let items be dicts of named values"
            )
        self._items = [{**item, CANARY: number} for item, number in zip(made_up, self._numbers, strict=True)]
        self._canaries = self._items[num_others:]

    @property
    def num_units(self) -> int:
        """N, canaries included."""
        return len(self._items)

    @property
    def num_others(self) -> int:
        """Units before the first canary."""
        return self._numbers.count(-1)

    @property
    def num_candidates(self) -> int:
        """m, canaries of all, whether `only` left them out or not."""
        return len(self._canaries)

    def change_canaries(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Give each canary's item other values."""
        self._canaries = [change(item) for item in self._canaries]
        self._items = [*self._items[: self.num_others], *self._canaries]

    def only(self, present: np.ndarray) -> "CanaryData":
        """The same data where canaries that are not `present` (m,) are left out; marked as none."""
        again = copy.copy(self)
        chosen = [item for item, there in zip(self._canaries, present, strict=True) if there]
        again._items = [{**item, CANARY: -1} for item in (*self._items[: self.num_others], *chosen)]
        return again

    def candidates(self) -> dict[str, Any]:
        """A batch of all canaries, in order."""
        return {name: value for name, value in self.collate(self._canaries).items() if name != CANARY}

    def privacy_unit(self) -> PrivacyUnit:
        """Each item is one."""
        return PrivacyUnit(
            name="record",
            num_units=len(self._items),
            rows_per_unit=self._rows,
            description="one unit that was made up for an audit",
        )

    def synthetic_items(self, num_items: int) -> list[Any]:
        """Every third one is a canary, beginning with the fourth: a check of what is 0 needs others."""
        items = self._maker.synthetic_items(num_items)
        numbers = [place // 3 - 1 if place and place % 3 == 0 else -1 for place in range(num_items)]
        return [{**item, CANARY: number} for item, number in zip(items, numbers, strict=True)]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch as the data module makes it, and which canary each row is."""
        batch = self._collate(
            [{name: value for name, value in item.items() if name != CANARY} for item in items]
        )
        numbers: Tensor = torch.tensor([int(item[CANARY]) for item in items])
        return {**batch, CANARY: numbers.repeat_interleave(self._rows)}

    def train_dataloader(self) -> DataLoader:
        """Collated as those of the recipe."""
        return DataLoader(_Items(self._items), batch_size=1, collate_fn=self.collate)


def _declared(source: object) -> PrivacyUnit | None:
    return source.privacy_unit() if provides(source, DeclaresUnit) else None


class _Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]
