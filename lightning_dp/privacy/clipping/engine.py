"""The interface between one private step and whatever computes its clipped sum.

A *unit* is what the privacy guarantee protects (an image, a window, a customer). One unit may own
several consecutive rows of the batch (noise draws, windows, augmentations, channels); it is clipped
as one. The loss is the **mean over all rows** of the physical batch, so a unit's gradient is the
mean over its rows of the row losses' gradients.

Scope: gradients only. Noise, sampling and accounting live beside this folder and never in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn

from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.observing import Observer
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.clipping.unit_sums import UnitSums


class ClippingEngine(ABC):
    """Computes Σ_u w_u · clip(g_u) over the units u of a batch, exactly.

    Life of one logical batch::

        engine.know(sites)                                          # of a followed step
        engine.attach(module, function=Flat(), max_grad_norm=1.0)   # once
        engine.expect(unit_weights=w, rows_per_unit=k)              # before each physical batch
        with engine.stepping():
            loss = ...                                              # the caller's ordinary code
        loss.backward()
        norms = engine.collect()                                    # after each backward
        sums = engine.take()                                        # once per logical batch
        engine.detach()                                             # once
    """

    units_at_once: ClassVar[int | None] = None
    """The most units that a physical batch may have; None is any number."""

    _sites: Sites | None = None
    _sums: UnitSums | None = None
    """Of the attached module."""
    _replaying = False

    @property
    def sites(self) -> Sites:
        """Where each use of a parameter has the batch's units; none where no step was followed."""
        if self._sites is None:
            self._sites = Sites()
        return self._sites

    def know(self, sites: Sites) -> None:
        """Go by what following a step showed (`following.py`). To be called before `attach`.

        A use that no followed step showed raises UnknownUse in the forward.
        """
        self._sites = sites

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Code inside may use trainable parameters outside of all forwards, as a `training_step` does.

        An engine that does not follow such uses refuses them in `collect`.
        """
        yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Calls made inside, of copies of the module too, are no part of the announced batch.

        A copy of a module has the hooks that an engine put on it; forwards that were replaced it has not.
        """
        before, self._replaying = self._replaying, True
        try:
            yield
        finally:
            self._replaying = before

    @abstractmethod
    def attach(self, module: nn.Module, *, function: ClippingFunction, max_grad_norm: float) -> None:
        """Hook onto every trainable parameter of `module`.

        Raises:
            ValueError: a trainable parameter can't be clipped per unit; names its module path and
                the way out. Nothing is left attached.
        """

    @abstractmethod
    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float = 1.0) -> None:
        """Announce the next physical batch. Sets `.grad` of the trainable parameters to None.

        Args:
            unit_weights: (U,) fp32 on any device; 0 for a padding unit, which then contributes
                exactly 0, else usually 1. The batch must have U · rows_per_unit rows.
            rows_per_unit: ≥ 1, consecutive rows that belong to one unit.
            loss_scale: > 0; the tensor whose backward runs is loss_scale · mean over rows. Norms and
                sums are as if it were 1. The number of rows is best: no row's gradient then depends on it.
        """

    @abstractmethod
    def collect(self) -> Tensor:
        """Add the clipped gradients of the backward that just ran; return the unit norms.

        Returns:
            (U,) fp32 unclipped gradient norms of the units, over all trainable parameters. NaN or
            Inf marks a unit whose gradient was not finite: it contributed exactly 0.

        Raises:
            RuntimeError: the recorded rows do not equal U · rows_per_unit, or the loss reached a
                trainable parameter in a way that the engine can't attribute to rows.
        """

    def take(self) -> dict[str, Tensor]:
        """Hand over and reset the fp32 sums since the last `take`, by parameter name.

        Every trainable parameter has an entry (zeros where no unit reached it). The contribution of
        one unit of weight 1 to the concatenated sums has ℓ2 norm ≤ max_grad_norm.
        """
        return self._attached().take()

    @property
    def pending(self) -> bool:
        """Whether sums are held that no `take` has fetched: a logical batch is not finished."""
        return self._sums is not None and self._sums.pending

    def observe(self, observer: Observer | None) -> Observer | None:
        """Show `observer` the norms of every batch from now on, in `collect`; None ends it, as detach does.

        It reads: sums and returned norms are bit for bit what they are without it. Returns the observer
        that there was before, for whoever looks on for one batch only.
        """
        sums = self._attached()
        before, sums.observer = sums.observer, observer
        return before

    def _attached(self) -> UnitSums:
        if self._sums is None:
            raise RuntimeError("This engine is not attached: call attach() first.")
        return self._sums

    @abstractmethod
    def detach(self) -> None:
        """Leave the module as it was found: no hooks, no attributes. Safe to call twice."""
