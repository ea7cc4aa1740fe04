"""Which parts of a collated batch belong to which unit, learnt from batches of one, two and three units.

What grows with the number of units is theirs; what stays the same is shared by all. A length that happens to
be that of the batch says nothing.
"""

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor

from lightning_dp.privacy.batch_trees import change, leaves, length
from lightning_dp.privacy.rows import PRETENDED, spread


class NoLayout(ValueError):
    """Something in the batch neither grows with the number of units nor stays the same."""


@final
class BatchLayout:
    """Entries of each leaf that one unit has, 0 for what all units share, in the order of the leaves."""

    def __init__(self, entries: list[int]) -> None:
        self._entries = entries

    @classmethod
    def of(cls, batches: Mapping[int, Any]) -> Self:
        """From batches of one structure by their number of units, at least two of them.

        Raises:
            NoLayout: they have no common layout.
        """
        numbers = list(batches)
        found = [leaves(batches[number]) for number in numbers]
        if len({len(one) for one in found}) != 1:
            raise NoLayout(
                "a list in the batch has one tensor a unit, or another number of tensors each time: give one "
                "tensor with an entry a unit, padded to a fixed size"
            )
        entries = []
        for same in zip(*found, strict=True):
            lengths = {number: length(leaf) for number, leaf in zip(numbers, same, strict=True)}
            each = lengths[numbers[0]] // numbers[0]
            if each and all(size == each * number for number, size in lengths.items()):
                entries.append(each)
            elif len(set(lengths.values())) == 1:
                entries.append(0)
            else:
                shown = ", ".join(f"{size} for {number}" for number, size in lengths.items())
                raise NoLayout(
                    f"a part of the batch has {shown} unit(s): give a tensor with as many entries for each"
                )
        if not any(entries):
            raise NoLayout("nothing in the batch has an entry a unit")
        return cls(entries)

    @classmethod
    def rows_first(cls, batch: Any, *, num_units: int) -> Self:
        """Of a batch in which, by contract, every part has rows first and each unit as many of them.

        Raises:
            NoLayout: a part has a number of rows that units can't share.
        """
        lengths = [length(leaf) for leaf in leaves(batch)]
        if not lengths or any(not size or size % num_units for size in lengths):
            raise NoLayout(f"parts of the batch have {lengths} rows, which {num_units} units can't share")
        return cls([size // num_units for size in lengths])

    def first(self, batch: Any, *, num_units: int) -> Any:
        """A batch's first unit, pretending to be `PRETENDED` of them, to be followed; on the CPU.

        Raises:
            NoLayout: the batch has another layout.
        """
        entries = iter(self._entries)

        def one(leaf: Any) -> Any:
            try:
                each = next(entries)
            except StopIteration:
                raise NoLayout("a batch has other parts than those before") from None
            if not each:
                return leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf
            if length(leaf) != each * num_units:
                raise NoLayout(
                    f"a part of the batch has {length(leaf)} rows where {num_units} units of {each} make "
                    f"{each * num_units}"
                )
            own = leaf[:each]
            if isinstance(leaf, Tensor):
                return spread(own.detach().cpu().clone())
            if isinstance(leaf, list | tuple):
                return type(leaf)(list(own) * PRETENDED)
            return spread(torch.as_tensor(own).clone())

        changed = change(batch, one)
        if next(entries, None) is not None:
            raise NoLayout("a batch lacks parts that those before had")
        return changed
