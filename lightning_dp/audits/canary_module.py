"""Canaries whose gradient is known: a unit of which everything is clipped away but one direction.

The module of a fit gets a `training_step` in which some rows have another loss: κ times one entry of one of
its weights, which no clipping can miss. Such a unit's gradient is κ at that entry and 0 elsewhere, so what
the engine makes of it is C there: the worst unit there can be, in a place where one knows to look (Nasr et
al. 2023, arXiv 2302.07956, Sec. 4.2, "Dirac canary"). All other rows keep their loss.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_dp.privacy.preflight import copies

CANARY = "audit_canary"
"""Of a batch: (B,) whole numbers, which canary a row is; below 0 none."""

_STRENGTH = 1000.0


class _CanarySteps:
    """What an audited module does beside its own class."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """`losses` (R,): those of the module for rows that are no canaries."""
        told = {name: value for name, value in batch.items() if name != CANARY}
        output = super().training_step(told, batch_idx)  # type: ignore[misc]
        losses = output.get("losses") if isinstance(output, Mapping) else output
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            raise ValueError(
                f"training_step of {type(self).__mro__[2].__name__} returns no losses of rows (R,), so "
                "no row of it can be made a canary: return {'losses': losses}"
            )
        canary = batch[CANARY].repeat_interleave(len(losses) // len(batch[CANARY]))  # (R,)
        return {"losses": torch.where(canary < 0, losses, self._losses_of(canary))}

    def _losses_of(self, canary: Tensor) -> Tensor:
        """(R,): κ times the canary's entry of the weight; 0 for one that is not there."""
        weight = self.get_submodule(self.audited).weight  # type: ignore[attr-defined]
        which = (canary[:, None] == self.audit_numbers).to(weight.dtype)  # type: ignore[attr-defined]  # (R, m)
        inputs = which @ self.audit_inputs  # type: ignore[attr-defined]  # (R, in)
        picked = which @ self.audit_outputs  # type: ignore[attr-defined]  # (R, out)
        return (F.linear(inputs, weight) * picked).sum(dim=1)


def with_canaries(module: LightningModule, *, present: Tensor, max_grad_norm: float) -> LightningModule:
    """A copy of a module, of a class beside its own, that trains on m canaries too.

    Args:
        module: whose `training_step` takes a mapping and returns losses of rows.
        present: (m,) bool, which canaries are there; a unit of another contributes exactly 0.
        max_grad_norm: C.

    Raises:
        ValueError: no linear layer of it that trains has m entries.
    """
    copied = copies.copied(module, with_weights=True)
    name, weight = _largest_linear(copied, least=len(present))
    kind = type(module)
    copied.__class__ = type(f"Audited{kind.__name__}", (_CanarySteps, kind), {"__module__": kind.__module__})
    entry = torch.arange(len(present)) * (weight.numel() // len(present))
    row, column = entry // weight.shape[1], entry % weight.shape[1]
    strength = _STRENGTH * max_grad_norm * present.float()
    inputs = F.one_hot(column, weight.shape[1]) * strength[:, None]  # (m, in)
    outputs = F.one_hot(row, weight.shape[0]).float()  # (m, out)
    copied.__dict__["audited"] = name
    copied.register_buffer("audit_numbers", torch.arange(len(present)), persistent=False)
    copied.register_buffer("audit_inputs", inputs, persistent=False)
    copied.register_buffer("audit_outputs", outputs, persistent=False)
    return copied


def canary_entries(module: LightningModule) -> Tensor:
    """(m,) where in the flattened `audited_weight` canaries are."""
    numbers = module.audit_numbers
    assert isinstance(numbers, Tensor)
    return numbers * (audited_weight(module).numel() // len(numbers))


def audited_weight(module: LightningModule) -> Tensor:
    """The weight that canaries are in the entries of."""
    return module.get_submodule(module.audited).weight  # type: ignore[arg-type, return-value]


def _largest_linear(module: nn.Module, *, least: int) -> tuple[str, Tensor]:
    found = [
        (name, layer.weight)
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and layer.weight.requires_grad
    ]
    name, weight = max(found, key=lambda one: one[1].numel(), default=("", torch.zeros(0)))
    if weight.numel() < least:
        raise ValueError(
            f"{type(module).__name__} trains no linear layer of at least {least} weights, and canaries need "
            "one each: take fewer (--canaries), or a larger net"
        )
    return name, weight
