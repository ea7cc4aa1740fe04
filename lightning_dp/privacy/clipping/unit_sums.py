"""What every engine shares: units, scales, factors and running sums. Knows nothing of hooks.

Scope: arithmetic on numbers that an engine measured. How per-unit norms and weighted sums come about
is the engine's business.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.observing import Observer, UnitNorms

_CONTRACT = 1e-5
"""By which share a unit may exceed max_grad_norm: fp32 factors of fp32 norms are rounded."""


class UnitSums:
    """Turns per-group squared norms into coefficients and keeps Σ_u coefficient_u · g_u.

    With R = U · rows_per_unit rows, a backward of the mean over rows delivers 1/R of each row's
    gradient. A unit's gradient is the mean over its own rows, hence U times what its rows delivered.

    Args:
        module: its trainable parameters, under the names of `named_parameters()`, are summed.
        function: the clipping function, asked once for its partition of the names.
        max_grad_norm: C > 0.
    """

    def __init__(self, module: nn.Module, *, function: ClippingFunction, max_grad_norm: float) -> None:
        if not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={max_grad_norm} must be > 0: it is the sensitivity of a step.")
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(
                f"{type(module).__name__} has no trainable parameter: there is nothing to clip. "
                "Set requires_grad=True on what should be trained before attaching."
            )
        self.names = {id(p): n for n, p in self.parameters.items()}
        groups = function.partition(list(self.parameters))
        self.groups = dict(zip(self.parameters, groups, strict=True))
        self.num_groups = max(groups) + 1
        if set(groups) != set(range(self.num_groups)):
            raise ValueError(
                f"{type(function).__name__}.partition must use every group 0 … G−1, got {groups}"
            )
        self._function = function
        self._max_grad_norm = max_grad_norm
        self._weights: Tensor | None = None
        self._scale = 1.0
        self._sums: dict[str, Tensor] = {}
        self.rows_per_unit = 1
        self.observer: Observer | None = None
        self.pending = False
        """Whether a batch was clipped since the last `take`."""

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float) -> None:
        """Note the next physical batch and forget `.grad`, which no step may use."""
        if unit_weights.ndim != 1 or unit_weights.numel() == 0:
            raise ValueError(f"unit_weights must have shape (U,) with U ≥ 1, got {tuple(unit_weights.shape)}")
        if rows_per_unit < 1:
            raise ValueError(f"rows_per_unit={rows_per_unit} must be ≥ 1")
        if not loss_scale > 0:
            raise ValueError(f"loss_scale={loss_scale} must be > 0")
        if not bool((unit_weights.isfinite() & (unit_weights >= 0)).all()):
            raise ValueError("unit_weights must be finite and ≥ 0: a unit counts with its weight times C")
        self._weights = unit_weights.detach().float()
        self.rows_per_unit = rows_per_unit
        self._scale = len(unit_weights) / loss_scale
        for parameter in self.parameters.values():
            parameter.grad = None

    def forget(self) -> None:
        """Stop expecting a batch; drop raw gradients, which no optimizer may see."""
        self._weights = None
        for parameter in self.parameters.values():
            parameter.grad = None

    @property
    def expecting(self) -> bool:
        """Whether a batch was announced and not yet collected."""
        return self._weights is not None

    @property
    def weightless(self) -> bool:
        """Whether no unit of the announced batch has a weight, so that its sums are exactly 0."""
        return self._weights is not None and not bool((self._weights > 0).any())

    @property
    def units(self) -> int:
        """U of the announced batch."""
        if self._weights is None:
            raise RuntimeError("No batch was announced: call expect() before the forward pass.")
        return len(self._weights)

    @property
    def rows(self) -> int:
        """Rows of the announced batch, U · rows_per_unit."""
        return self.units * self.rows_per_unit

    def clip_coefficients(self, squared_norms: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Norms of the units and what each unit's rows are to be multiplied with.

        Args:
            squared_norms: by parameter name, (U,) fp64, of what the backward delivered. Parameters
                that no unit reached may be missing.

        Returns:
            (U,) fp32 norms, NaN for units that are not finite in fp32, and by parameter name (U,) fp64
            coefficients (weight · factor · scale, exactly 0 for units that are not finite).

        Raises:
            RuntimeError: the clipping function breaks its contract, so that the sum has no known bound.
        """
        if self._weights is None:
            raise RuntimeError("No batch was announced: call expect() before the forward pass.")
        device = next(iter(self.parameters.values())).device
        weights = self._weights.to(device)
        squares = torch.zeros(self.units, self.num_groups, dtype=torch.float64, device=device)
        for name, square in squared_norms.items():
            squares[:, self.groups[name]] += square.to(device)
        norms = squares.sqrt() * self._scale  # (U, G)
        total = norms.square().sum(dim=1).sqrt()
        finite = total <= torch.finfo(torch.float32).max
        norms = torch.where(finite[:, None], norms, 0.0)
        factors = self._factors(norms)
        coefficients = torch.where(finite[:, None], factors, 0.0) * (
            weights.double() * self._scale
        ).unsqueeze(1)
        self.pending = True
        if self.observer is not None:
            shown = torch.where(finite[:, None], factors, 0.0).float()
            self.observer(
                UnitNorms(
                    norms={
                        n: (square.to(device).sqrt() * self._scale).float()
                        for n, square in squared_norms.items()
                    },
                    factors={name: shown[:, self.groups[name]] for name in squared_norms},
                    weights=weights,
                )
            )
        shown_total = torch.where(finite, total, torch.nan).float()
        return shown_total, {name: coefficients[:, group] for name, group in self.groups.items()}

    def _factors(self, norms: Tensor) -> Tensor:
        """(U, G) fp64 factors of fp64 norms, held to `ClippingFunction.factors`' contract."""
        factors = self._function.factors(norms, max_grad_norm=self._max_grad_norm)
        name = type(self._function).__name__
        if not isinstance(factors, Tensor) or factors.shape != norms.shape:
            got = tuple(factors.shape) if isinstance(factors, Tensor) else type(factors).__name__
            raise RuntimeError(
                f"{name}.factors returned {got} for norms of shape {tuple(norms.shape)}: return one factor "
                "for each unit and group"
            )
        factors = factors.detach().to(norms.device, torch.float64)
        if not bool((factors.isfinite() & (factors >= 0)).all()):
            raise RuntimeError(
                f"{name}.factors returned a factor that is negative or not finite: return numbers ≥ 0 for "
                "every finite norm, 0 included"
            )
        largest = float((factors * norms).square().sum(dim=1).sqrt().max())
        if largest > self._max_grad_norm * (1 + _CONTRACT):
            raise RuntimeError(
                f"{name}.factors lets one unit contribute {largest:.6g} where max_grad_norm="
                f"{self._max_grad_norm:.6g}: make Σ (factor · norm)² over groups at most max_grad_norm²"
            )
        self._refuse_others_influence(norms, factors)
        return factors

    def _refuse_others_influence(self, norms: Tensor, factors: Tensor) -> None:
        """Ask for every second factor again, among other units: they must be what they are."""
        zero = torch.zeros_like(norms[:1])
        for part in (slice(0, None, 2), slice(1, None, 2)):
            among = torch.cat([norms[part], zero, zero, zero, zero + 1e30])
            again = self._function.factors(among, max_grad_norm=self._max_grad_norm)[: len(norms[part])]
            if not torch.allclose(again.detach().to(factors), factors[part], rtol=1e-6, atol=0.0):
                raise RuntimeError(
                    f"{type(self._function).__name__}.factors gives a unit another factor among other units, "
                    "so the sum has no known bound: compute each row of factors from its own row of norms"
                )

    def add(self, name: str, value: Tensor) -> None:
        """Add `value`, of the parameter's shape, to the running fp32 sum of `name`."""
        if name in self._sums:
            self._sums[name] += value
        else:
            self._sums[name] = value.float()

    def check_untracked(self, seen: set[str], *, engine: str) -> None:
        """Fail if autograd reached a parameter behind the engine's back.

        Raises:
            RuntimeError: names each such parameter and the way out.
        """
        strays = [n for n, p in self.parameters.items() if p.grad is not None and n not in seen]
        if strays:
            raise RuntimeError(
                f"{engine} saw no per-row use of {', '.join(strays)}, yet the loss depends on it. Use "
                "BookKeeping, which sees more uses than other engines; else move what reads it into the "
                "forward of a submodule that is called, or freeze it (requires_grad=False)."
            )

    def take(self) -> dict[str, Tensor]:
        """Running sums by name, zeros where no unit reached a parameter; starts anew."""
        sums, self._sums, self.pending = self._sums, {}, False
        return {
            name: sums[name] if name in sums else torch.zeros_like(parameter, dtype=torch.float32)
            for name, parameter in self.parameters.items()
        }
