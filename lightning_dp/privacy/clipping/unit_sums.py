"""What every engine shares: units, scales, factors and running sums. Knows nothing of hooks.

Scope: arithmetic on numbers that an engine measured. How per-unit norms and weighted sums come about
is the engine's business.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.observing import Observer, UnitNorms


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

    def expect(self, *, unit_weights: Tensor, rows_per_unit: int, loss_scale: float) -> None:
        """Note the next physical batch and forget `.grad`, which no step may use."""
        if unit_weights.ndim != 1 or unit_weights.numel() == 0:
            raise ValueError(f"unit_weights must have shape (U,) with U ≥ 1, got {tuple(unit_weights.shape)}")
        if rows_per_unit < 1:
            raise ValueError(f"rows_per_unit={rows_per_unit} must be ≥ 1")
        if not loss_scale > 0:
            raise ValueError(f"loss_scale={loss_scale} must be > 0")
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
    def units(self) -> int:
        """U of the announced batch."""
        if self._weights is None:
            raise RuntimeError("No batch was announced: call expect() before the forward pass.")
        return len(self._weights)

    @property
    def rows(self) -> int:
        """Rows of the announced batch, U · rows_per_unit."""
        return self.units * self.rows_per_unit

    def decide(
        self, squared_norms: Mapping[str, Tensor], *, slack: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Norms of the units and what each unit's rows are to be multiplied with.

        Args:
            squared_norms: by parameter name, (U,) fp32, of what the backward delivered. Parameters
                that no unit reached may be missing.
            slack: (U, G) fp32 or None; added to the squares before clipping but not reported. For
                rounding errors that a unit could otherwise hide behind.

        Returns:
            (U,) norms, NaN for units that are not finite, and by parameter name (U,) coefficients
            (weight · factor · scale, exactly 0 for units that are not finite).
        """
        if self._weights is None:
            raise RuntimeError("No batch was announced: call expect() before the forward pass.")
        device = next(iter(self.parameters.values())).device
        squares = torch.zeros(self.units, self.num_groups, device=device)
        for name, square in squared_norms.items():
            squares[:, self.groups[name]] += square.to(device)
        finite = squares.isfinite().all(dim=1)
        zero = torch.zeros((), device=device)
        squares = torch.where(finite[:, None], squares, zero)
        norms = squares.sqrt() * self._scale
        clipped = norms if slack is None else (squares + slack.to(device)).sqrt() * self._scale
        factors = self._function.factors(clipped, max_grad_norm=self._max_grad_norm)
        weights = self._weights.to(device) * self._scale
        coefficients = torch.where(finite[:, None], factors * weights[:, None], zero)
        total = torch.where(
            finite, norms.square().sum(dim=1).sqrt(), torch.full((), torch.nan, device=device)
        )
        if self.observer is not None:
            shown = torch.where(finite[:, None], factors, zero)
            self.observer(
                UnitNorms(
                    norms={name: square.sqrt() * self._scale for name, square in squared_norms.items()},
                    factors={name: shown[:, self.groups[name]] for name in squared_norms},
                    weights=self._weights,
                )
            )
        return total, {name: coefficients[:, group] for name, group in self.groups.items()}

    def add(self, name: str, value: Tensor) -> None:
        """Add `value`, of the parameter's shape, to the running fp32 sum of `name`."""
        if name in self._sums:
            self._sums[name] += value
        else:
            self._sums[name] = value.float()

    def refuse_strays(self, seen: set[str], *, engine: str) -> None:
        """Fail if autograd reached a parameter behind the engine's back.

        Raises:
            RuntimeError: names each such parameter and the way out.
        """
        strays = [n for n, p in self.parameters.items() if p.grad is not None and n not in seen]
        if strays:
            raise RuntimeError(
                f"{engine} saw no per-row use of {', '.join(strays)}, yet the loss depends on it. A "
                "parameter must be used inside the forward of the module that owns it: move it into a "
                "submodule that is called, or freeze it (requires_grad=False)."
            )

    def take(self) -> dict[str, Tensor]:
        """Running sums by name, zeros where no unit reached a parameter; starts anew."""
        sums, self._sums = self._sums, {}
        return {
            name: sums[name] if name in sums else torch.zeros_like(parameter, dtype=torch.float32)
            for name, parameter in self.parameters.items()
        }
