"""Each unit in a batch of its own, by plain autograd: exact whatever a step does with a batch, and slow.

No unit meets another one, so nothing has to be known about the model, the loss or the batch's structure:
graphs, lists of boxes, losses that count tokens. A loss that compares units with each other has nothing to
compare. A step costs what as many batches of one unit cost, often ten times as much and more.
"""

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.unit_sums import UnitSums


class OneByOne(ClippingEngine):
    """The gradient of a batch of one unit is that unit's. Takes physical batches of one unit only."""

    units_at_once = 1

    def attach(self, module: nn.Module, *, function: ClippingFunction, max_grad_norm: float) -> None:
        if self._sums is not None:
            raise ValueError("This engine is attached already: call detach() first.")
        self._sums = UnitSums(module, function=function, max_grad_norm=max_grad_norm)

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float = 1.0) -> None:
        if len(unit_weights) != 1:
            raise ValueError(f"OneByOne takes one unit at a time, not {len(unit_weights)}")
        self._attached().expect(unit_weights=unit_weights, rows_per_unit=rows_per_unit, loss_scale=loss_scale)

    def collect(self) -> Tensor:
        sums = self._attached()
        gradients = {name: _dense(p.grad) for name, p in sums.parameters.items() if p.grad is not None}
        squares = {name: gradient.square().sum().reshape(1) for name, gradient in gradients.items()}
        norms, coefficients = sums.clip_coefficients(squares)
        for name, gradient in gradients.items():
            if coefficients[name] != 0:  # skipped rather than multiplied by 0: 0 · NaN is NaN
                sums.add(name, (coefficients[name] * gradient).float())
        sums.forget()
        return norms

    def detach(self) -> None:
        self._sums = None


def _dense(gradient: Tensor) -> Tensor:
    """In fp64, where squares neither under- nor overflow."""
    return (gradient.to_dense() if gradient.layout != torch.strided else gradient).detach().double()
