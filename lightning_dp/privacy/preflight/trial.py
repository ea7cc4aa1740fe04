"""What all checks of a step share: the step, the made-up units, and the gradient of each unit alone."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.draws import RowAlignedRandomness
from lightning_dp.privacy.preflight.gradient import Gradient
from lightning_dp.privacy.preflight.made_up import MadeUp
from lightning_dp.privacy.preflight.numbers import count
from lightning_dp.privacy.preflight.step import StepFailed, TrainingStep

NUM_UNITS = 13
"""Made-up units that the checks need: twelve, and one more so that nothing else is as long by chance."""


@final
@dataclass(kw_only=True)
class Trial:
    """What is tried, and on what.

    Attributes:
        step: what is tried.
        units: at least `NUM_UNITS`.
        rows_per_unit: ≥ 1, rows of a layer's input that belong to one unit, as declared.
        engine: not attached to anything; left so.
        function: the run's clipping function.
        sites: where uses of parameters have units, once the step was followed.
    """

    step: TrainingStep
    units: MadeUp
    rows_per_unit: int
    engine: ClippingEngine
    function: ClippingFunction
    sites: Sites = field(default_factory=Sites, init=False)
    _alone: dict[int, Gradient] = field(default_factory=dict, init=False)

    @property
    def units_meet(self) -> bool:
        """Whether a batch of the fit can have several units in it."""
        return self.engine.units_at_once != 1

    @cached_property
    def counts(self) -> dict[int, int | None]:
        """By leaf of whole numbers, how many the step takes, counted from 0; None where there is no end."""
        step = self.step.on_cpu()
        return {leaf: count(step, self.units, leaf) for leaf in self.units.leaves_of("whole")}

    @cached_property
    def bytes_of_unit(self) -> int | None:
        """What a forward keeps of one more unit for its backward; None where the step fails.

        Of made-up units, and in fp32 where weights are in half precision.
        """
        try:
            one, three = (self._bytes_kept(units) for units in ([0], [0, 1, 2]))
        except StepFailed:
            return None
        return max(0, three - one) // 2  # what units share, such as weights, is in both

    def _bytes_kept(self, units: list[int]) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module = self.step.copy()
            with self.step.running(RowAlignedRandomness()):
                loss = self.step.loss(module, self.units.pick(units))  # alive, so that no address comes twice
        del loss
        return sum(kept.values())

    def alone(self, unit: int) -> Gradient:
        """The gradient of one unit in a batch of its own.

        Raises:
            StepFailed: it can't be had.
        """
        if unit not in self._alone:
            try:
                self._alone[unit] = self.step.gradient(self.units.pick([unit]), draws=RowAlignedRandomness())
            except StepFailed as error:
                raise StepFailed(f"in a batch of one unit, which Poisson sampling draws: {error}") from error
        return self._alone[unit]
