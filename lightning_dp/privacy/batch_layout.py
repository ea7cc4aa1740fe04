"""Which parts of a collated batch belong to which unit, learnt from batches of one, two and three units.

What grows with the number of units is theirs; what stays the same is shared by all. A length that happens to
be that of the batch says nothing.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
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
            raise NoLayout("a list in it has one tensor a unit, or another number of tensors each time")
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
                raise NoLayout(f"a part of it has {shown} unit(s)")
        if not any(entries):
            raise NoLayout("nothing in it has an entry a unit")
        return cls(entries)

    @classmethod
    def rows_first(cls, batch: Any, *, num_units: int) -> Self:
        """Of a batch in which, by contract, every part has rows first and each unit as many of them.

        Raises:
            NoLayout: a part has a number of rows that units can't share.
        """
        lengths = [length(leaf) for leaf in leaves(batch)]
        if not lengths or any(not size or size % num_units for size in lengths):
            raise NoLayout(f"its parts have {lengths} rows, which {num_units} units can't share")
        return cls([size // num_units for size in lengths])

    def first(self, batch: Any, *, num_units: int) -> Any:
        """A batch's first unit, pretending to be `PRETENDED` of them, to be followed; on the CPU.

        Raises:
            NoLayout: the batch has another layout.
        """

        def one(leaf: Any, each: int) -> Any:
            if not each:
                return leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf
            own = leaf[:each]
            if isinstance(leaf, Tensor):
                return spread(own.detach().cpu().clone())
            if isinstance(leaf, list | tuple):
                return type(leaf)(list(own) * PRETENDED)
            return spread(torch.as_tensor(own).clone())

        return self.changed(batch, one, num_units=num_units)

    def pick(self, batch: Any, units: Sequence[int], *, num_units: int) -> Any:
        """The batch of some of its units, in memory of its own.

        Raises:
            NoLayout: the batch has another layout.
        """

        def own(leaf: Any, each: int) -> Any:
            if not each:
                return copy.deepcopy(leaf)
            rows = [unit * each + row for unit in units for row in range(each)]
            return type(leaf)(leaf[row] for row in rows) if isinstance(leaf, list | tuple) else leaf[rows]

        return self.changed(batch, own, num_units=num_units)

    def changed(self, batch: Any, function: Callable[[Any, int], Any], *, num_units: int) -> Any:
        """The batch with `function(leaf, entries of one unit)` applied to its leaves.

        Raises:
            NoLayout: the batch has another layout.
        """
        entries = iter(self._entries)

        def one(leaf: Any) -> Any:
            try:
                each = next(entries)
            except StopIteration:
                raise NoLayout("it has other parts than batches before") from None
            if each and length(leaf) != each * num_units:
                raise NoLayout(
                    f"a part of it has {length(leaf)} rows where {num_units} units of {each} make "
                    f"{each * num_units}"
                )
            return function(leaf, each)

        changed = change(batch, one)
        if next(entries, None) is not None:
            raise NoLayout("it lacks parts that batches before had")
        return changed
