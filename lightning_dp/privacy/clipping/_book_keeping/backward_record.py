"""What one backward tells: which parameter was used where, and what each unit did to it."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import vjp, vmap

from lightning_dp.privacy.clipping._book_keeping.per_unit_gradient import (
    KeptGradient,
    OuterProductGradient,
    PerUnitGradient,
    SummedGradient,
)
from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.clipping.per_unit import unfussed
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.rows import UnitDim


class BackwardRecord:
    """Uses of the trainable parameters since `expect`, and the norms that backward found already.

    Args:
        sums: of the attached module.
        sites: where uses have units.
        following: a followed step fills `sites`; nothing is clipped.
    """

    def __init__(self, sums: UnitSums, *, sites: Sites, following: bool = False) -> None:
        self.sums = sums
        self.sites = sites
        self.following = following
        self.paused = False
        self.uses: defaultdict[str, list[PerUnitGradient]] = defaultdict(list)
        self.squares: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()
        # Makes a layer's output require grad when neither its input nor its (detached) weight does.
        self.anchor = torch.zeros((), requires_grad=True)

    @property
    def recording(self) -> bool:
        """Whether a call made now belongs to a batch that will be collected."""
        if self.paused or not torch.is_grad_enabled():
            return False
        return self.following or self.sums.expecting

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Calls made inside belong to somebody who does what is needed himself."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def clear(self) -> None:
        """Forget everything of the last batch."""
        self.uses.clear()
        self.squares.clear()
        self.calls.clear()
        self.sites.begin()

    def unitwise(self, tensor: Tensor, where: UnitDim, *, last: int = 1) -> Tensor:
        """(…, *tail) → (U, T, *tail), the tail being the `last` dimensions. Copies where it must."""
        tail = tensor.shape[tensor.ndim - last :]
        if where.dim > 0 or where.outer > 1:
            tensor = where.split(tensor, units=self.sums.units)
        return tensor.reshape(self.sums.units, -1, *tail)

    def squared_norms(self, name: str) -> Tensor:
        """(U,) squared norms of everything that reached one parameter."""
        uses = self.uses[name]
        if len(uses) == 1:
            return self.squares[name] if name in self.squares else uses[0].squared_norms()
        joined = SummedGradient.of(uses, units=self.sums.units)
        self.uses[name] = [joined]
        return joined.squared_norms()


class GradientCollector(ABC):
    """Where a layer's backward puts what it found about one of its tensors."""

    @abstractmethod
    def expect_use(self) -> None:
        """Called in forward: one more use is coming."""

    @abstractmethod
    def add(self, use: PerUnitGradient) -> None:
        """Called in backward."""


class ParameterCollector(GradientCollector):
    """The tensor is a trainable parameter."""

    def __init__(self, record: BackwardRecord, name: str) -> None:
        self._record, self._name = record, name

    def expect_use(self) -> None:
        self._record.calls[self._name] += 1

    def add(self, use: PerUnitGradient) -> None:
        record, name = self._record, self._name
        # The count is a hint (checkpointing calls twice): several uses are always joined in collect.
        alone = record.calls[name] <= 1 and not record.uses[name]
        if alone:
            use = use.cheapest()
            # Now, while activation and gradient are in cache.
            record.squares[name] = use.squared_norms()
        record.uses[name].append(use)


class TransposedCollector(GradientCollector):
    """The parameter is stored as (d, p) where the layer's rule thinks of (p, d)."""

    def __init__(self, collector: GradientCollector) -> None:
        self._collector = collector

    def expect_use(self) -> None:
        self._collector.expect_use()

    def add(self, use: PerUnitGradient) -> None:
        assert isinstance(use, OuterProductGradient)
        self._collector.add(OuterProductGradient(use.grads, use.inputs))


class DerivedCollector(GradientCollector):
    """The tensor was computed from parameters alone, the same for every row."""

    def __init__(
        self, record: BackwardRecord, roots: dict[str, Tensor], make: Callable[[dict[str, Tensor]], Tensor]
    ) -> None:
        self._collectors = {name: ParameterCollector(record, name) for name in roots}
        self._record, self._roots, self._make = record, roots, make

    def expect_use(self) -> None:
        for collector in self._collectors.values():
            collector.expect_use()

    def add(self, use: PerUnitGradient) -> None:
        self.add_gradients(use.per_unit(0, self._record.sums.units))

    def add_gradients(self, gradients: Tensor) -> None:
        """Per-unit gradients (U, *shape) of the derived tensor, pulled back to each parameter."""
        with torch.enable_grad():
            value, pull = vjp(self._make, self._roots)[:2]
        with exact_products(), unfussed():
            found = vmap(lambda g: pull(g.to(value.dtype))[0])(gradients)
        for name, collector in self._collectors.items():
            collector.add(KeptGradient(found[name].float()))
