"""What one backward tells: which parameter was used where, and what each unit did to it."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import vjp, vmap

from lightning_dp.privacy.clipping.exact import exact_products
from lightning_dp.privacy.clipping.per_unit import unfussed
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.clipping.unit_sums import UnitSums
from lightning_dp.privacy.clipping.uses import KeptUse, OuterUse, SumUse, Use
from lightning_dp.privacy.rows import UnitDim


class Tape:
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
        self.uses: defaultdict[str, list[Use]] = defaultdict(list)
        self.squares: dict[str, Tensor] = {}
        self.calls: Counter[str] = Counter()
        # Makes a layer's output require grad when neither its input nor its (detached) weight does.
        self.anchor = torch.zeros((), requires_grad=True)

    @property
    def listening(self) -> bool:
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
        joined = SumUse.of(uses, units=self.sums.units)
        self.uses[name] = [joined]
        return joined.squared_norms()


class Sink(ABC):
    """Where a layer's backward puts what it found about one of its tensors."""

    @abstractmethod
    def announce(self) -> None:
        """Called in forward: one more use is coming."""

    @abstractmethod
    def add(self, use: Use) -> None:
        """Called in backward."""


class ParameterSink(Sink):
    """The tensor is a trainable parameter."""

    def __init__(self, tape: Tape, name: str) -> None:
        self._tape, self._name = tape, name

    def announce(self) -> None:
        self._tape.calls[self._name] += 1

    def add(self, use: Use) -> None:
        tape, name = self._tape, self._name
        # The count is a hint (checkpointing calls twice): several uses are always joined in collect.
        alone = tape.calls[name] <= 1 and not tape.uses[name]
        if alone:
            use = use.cheapest()
            # Now, while activation and gradient are in cache.
            tape.squares[name] = use.squared_norms()
        tape.uses[name].append(use)


class TransposedSink(Sink):
    """The parameter is stored as (d, p) where the layer's rule thinks of (p, d)."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def announce(self) -> None:
        self._sink.announce()

    def add(self, use: Use) -> None:
        assert isinstance(use, OuterUse)
        self._sink.add(OuterUse(use.grads, use.inputs))


class DerivedSink(Sink):
    """The tensor was computed from parameters alone, the same for every row."""

    def __init__(
        self, tape: Tape, roots: dict[str, Tensor], make: Callable[[dict[str, Tensor]], Tensor]
    ) -> None:
        self._sinks = {name: ParameterSink(tape, name) for name in roots}
        self._tape, self._roots, self._make = tape, roots, make

    def announce(self) -> None:
        for sink in self._sinks.values():
            sink.announce()

    def add(self, use: Use) -> None:
        self.add_gradients(use.per_unit(0, self._tape.sums.units))

    def add_gradients(self, gradients: Tensor) -> None:
        """Per-unit gradients (U, *shape) of the derived tensor, pulled back to each parameter."""
        with torch.enable_grad():
            value, pull = vjp(self._make, self._roots)[:2]
        with exact_products(), unfussed():
            found = vmap(lambda g: pull(g.to(value.dtype))[0])(gradients)
        for name, sink in self._sinks.items():
            sink.add(KeptUse(found[name].float()))
