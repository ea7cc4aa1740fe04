"""Products whose result is fp32 and as exact as fp32 gets, whatever the operands' precision.

A norm or a clipped sum computed in bf16 or TF32 would break the sensitivity: one "clipped" unit with
cancelling tokens was measured at 110 times the bound when its T×T Gram matrices were bf16.
"""

import torch
from torch import Tensor

from lightning_dp.privacy.fp32_precision import full_precision, products_reduced

_HALF = (torch.bfloat16, torch.float16)


class exact_products:
    """Context: no gradients, TF32 or autocast inside, whatever the user's settings outside.

    A class with a fast way through, as it is entered once per layer and backward.
    """

    def __enter__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._full = full_precision(convolutions=False) if products_reduced() else None
        self._autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        torch.set_grad_enabled(False)
        if self._full is not None:
            self._full.__enter__()
        for kind in self._autocast:
            torch.set_autocast_enabled(kind, False)

    def __exit__(self, *_: object) -> None:
        torch.set_grad_enabled(self._grad)
        if self._full is not None:
            self._full.__exit__()
        for kind in self._autocast:
            torch.set_autocast_enabled(kind, True)


def exact_convolutions() -> full_precision:
    """The same for convolutions, whose precision has settings of its own."""
    return full_precision(products=False)


def _native(left: Tensor, right: Tensor) -> bool:
    # Tensor cores multiply half precision exactly and add in fp32; only there the result may stay fp32.
    return left.device.type == "cuda" and left.dtype == right.dtype and left.dtype in _HALF


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """(U, m, k) × (U, k, n) → (U, m, n) fp32."""
    if _native(left, right):
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def scaled_product(left: Tensor, right: Tensor, factors: Tensor) -> Tensor:
    """Σ_{u,t} factor_u · left_ut ⊗ right_ut; the narrower side is multiplied with the factors.

    Args:
        left: (U, T, m).
        right: (U, T, n).
        factors: (U,) fp32.

    Returns:
        (m, n) fp32, contiguous: noise and optimizers are several times slower on transposed sums.
    """
    scale_left = left.shape[2] <= right.shape[2]
    scaled = (left if scale_left else right).float() * factors[:, None, None]
    if _native(left, right) and left.dtype == torch.bfloat16:
        # All 24 bits by three half-precision products, cheaper than one in fp32; with two, 2⁻¹⁷ of what
        # cancels would stay.
        total = torch.zeros(left.shape[2], right.shape[2], device=left.device)
        for _ in range(3):
            part = scaled.to(torch.bfloat16)
            scaled = scaled - part
            a, b = (part, right) if scale_left else (left, part)
            total += torch.mm(a.flatten(0, 1).T, b.flatten(0, 1), out_dtype=torch.float32)
        return total
    pair = (scaled, right.float()) if scale_left else (left.float(), scaled)
    return pair[0].flatten(0, 1).T @ pair[1].flatten(0, 1)


def kept_sum(gradients: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_u coefficient_u · gradient_u of stored gradients (U, *shape) fp32, (*shape) fp32.

    Units with coefficient 0 are left out, NaN and Inf included; coefficients, (U,) fp64, that fp32 can't
    hold well are multiplied in fp64.
    """
    usual = (coefficients > 1e-25) & (coefficients < 1e25)
    # 0 · NaN is NaN: rows that count for nothing are emptied first.
    kept = gradients.masked_fill(~usual.view(-1, *(1,) * (gradients.ndim - 1)), 0)
    total = torch.tensordot(torch.where(usual, coefficients, 0.0).float(), kept, dims=1)
    for unit in torch.nonzero(~usual & (coefficients != 0)).flatten().tolist():
        total += (coefficients[unit] * gradients[unit].double()).float()
    result: Tensor = total
    return result
