"""What one conformance row needs: a model, rows for it, and the step that turns rows into losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""Every tensor has the rows first."""
Step = Callable[[nn.Module, Batch], Any]
"""(module, batch) → what `mean_loss` takes: per-row losses (R,) or their scalar mean."""


@dataclass(frozen=True)
class Case:
    """A model nobody here wrote (or a pattern seen in one), in its tiniest configuration.

    Args:
        source: the library it comes from.
        build: makes it, with random weights.
        inputs: rows → a batch of that many.
        step: what a `training_step` would do.
        most: the largest batch tried. 40 is the promise; 65 covers the channels of small models.
    """

    source: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Batch]
    step: Step
    most: int = 65


def per_row(output: Tensor) -> Tensor:
    """(R, …) → (R,), a loss of each row that leaves no gradient symmetric."""
    flat = output.flatten(1)
    weights = torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)
    return (flat * weights).square().mean(dim=1) + (flat * weights.flip(0)).mean(dim=1)


def plain(model: nn.Module, batch: Batch) -> Tensor:
    """Models of one tensor that return one."""
    return per_row(model(batch["x"]))


def noise(*shape: int) -> Callable[[int], Batch]:
    """Rows of this shape under the name x."""
    return lambda rows: {"x": torch.randn(rows, *shape)}


def randomized(model: nn.Module) -> nn.Module:
    """Weights away from their initial values, no dropout, training mode.

    Zero initialisation (adaLN-Zero, LayerScale, LoRA's B) would leave gradients out of the comparison; frozen
    weights near 0 would leave gradients of adapters that are rounding errors.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn_like(parameter) * min(0.5, fan_in**-0.5))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model
