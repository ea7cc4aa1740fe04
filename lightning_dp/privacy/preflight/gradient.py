"""Gradients by parameter name, and when two of them are the same."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

_OWN_TOLERANCE = 3e-4
_TOTAL_TOLERANCE = 1e-5
"""Shares of a parameter's own and of the whole gradient's norm: kernels round differently by batch size,
and what was rounded to bf16 (2⁻⁹) has to show."""


@final
class Gradient:
    """Trainable parameters' gradients, fp32 on the CPU, where there is room for several.

    Args:
        values: by parameter name; a parameter that nothing reached may be missing.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: value.detach().float().cpu() for name, value in values.items()}
        self._norms: dict[str, float] = {}

    @staticmethod
    def sum(terms: Sequence["Gradient"], *, factors: Sequence[float]) -> "Gradient":
        """Σ factor · term."""
        total: dict[str, Tensor] = {}
        for term, factor in zip(terms, factors, strict=True):
            for name, value in term.values.items():
                total[name] = total[name].add(value, alpha=factor) if name in total else value * factor
        return Gradient(total)

    @property
    def is_finite(self) -> bool:
        """Whether every entry is."""
        return all(bool(value.isfinite().all()) for value in self.values.values())

    def norm(self, name: str | None = None) -> float:
        """ℓ2, of one parameter's part or of all."""
        if not self._norms:
            self._norms = {one: float(torch.linalg.vector_norm(v)) for one, v in self.values.items()}
        return math.hypot(*self._norms.values()) if name is None else self._norms.get(name, 0.0)

    def dot(self, other: "Gradient") -> float:
        """The inner product."""
        common = self.values.keys() & other.values.keys()
        return sum(
            float(torch.dot(self.values[name].flatten(), other.values[name].flatten())) for name in common
        )


def difference(left: Gradient, right: Gradient, *, among: Sequence[Gradient]) -> str | None:
    """The parameter in which two gradients differ by more than rounding, or None.

    Args:
        left, right: to be compared.
        among: gradients that both were made of, which say how large a rounding error may be.
    """
    apart = Gradient.sum([left, right], factors=[1.0, -1.0])
    total = max((one.norm() for one in among), default=0.0)
    worst, place = 1.0, None
    for name in apart.values:
        own = max((one.norm(name) for one in among), default=0.0)
        allowed = _OWN_TOLERANCE * own + _TOTAL_TOLERANCE * total + torch.finfo(torch.float32).tiny
        ratio = apart.norm(name) / allowed
        if not ratio <= worst:  # NaN is a difference
            worst, place = ratio, name
    return place
