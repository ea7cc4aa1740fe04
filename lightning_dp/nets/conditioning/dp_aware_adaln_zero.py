"""AdaLN-Zero whose condition and modulation are bounded, so that one example can't steer without limit."""

from collections.abc import Callable

from torch import nn

from lightning_dp.nets.conditioning.bounds import Bound, Tanh
from lightning_dp.nets.conditioning.modulation import (
    Conditioning,
    ConditionProjection,
    Modulation,
    optional_bound,
)


class DPAwareAdaLNZero(Conditioning):
    """Vanilla AdaLN-Zero with ‖ĉ‖₂ ≤ c_max and |γ| ≤ γ_max, |β| ≤ β_max, |α| ≤ α_max (arXiv 2602.22610).

    Each bound can be null, which switches it off: c_max alone is "condition only", the other three alone are
    "modulation only". At zero-init with c_max inactive it equals `AdaLNZero` in output and in every gradient.
    The bounds are not a privacy guarantee: that comes from clipping and noise, which stay as they are. They
    bound each example's gradient of W_γ by c_max·‖Σ_τ u_τ ⊙ δv_τ‖.

    Args:
        c_max: largest ℓ2 norm of the vector that enters the modulation's linear layer (after its SiLU). Set
            it from public knowledge, such as 0.5–1 × √condition_size; a value measured on private data is a
            release.
        gamma_max: bound on each coordinate of the scale γ.
        beta_max: bound on each coordinate of the shift β.
        alpha_max: bound on each coordinate of the gate α.
        bound: the operator, from a limit to a module of `bounds.py`.
        tightness: > 0, what the four limits are multiplied with: 1.00, 0.90, 0.75 and 0.50 are the paper's
            loose, medium, tight and too tight, relative to limits measured on public data
            (`callbacks.conditioning_reference`).
        literal: scale by γ as the paper writes it, not by 1 + γ. γ starts at 1, so its limit, `tightness`
            included, has to be above 1 (or null); the operator's slope there, such as 1 − 1/γ_max² of `Tanh`,
            is what γ's first gradients are multiplied with.

    Raises:
        ValueError: a limit is no bound, or `literal` and γ's is not above 1.
    """

    def __init__(
        self,
        *,
        c_max: float | None = None,
        gamma_max: float | None = 1.0,
        beta_max: float | None = 1.0,
        alpha_max: float | None = 1.0,
        bound: Callable[[float], Bound] = Tanh,
        tightness: float = 1.0,
        literal: bool = False,
    ) -> None:
        # Built once here so that a bad value is refused when the config is read, under the name the user
        # gave it.
        limits = {"c_max": c_max, "gamma_max": gamma_max, "beta_max": beta_max, "alpha_max": alpha_max}
        for name, limit in limits.items():
            if limit is not None and not 0 < limit < float("inf"):
                raise ValueError(
                    f"{name} is {limit}, but a bound has to be positive and finite; null switches it off."
                )
        if not 0 < tightness < float("inf"):
            raise ValueError(f"tightness is {tightness}, but limits are multiplied with it: 0.9 is usual.")
        self.c_max = None if c_max is None else tightness * c_max
        self.gamma_max = None if gamma_max is None else tightness * gamma_max
        self.beta_max = None if beta_max is None else tightness * beta_max
        self.alpha_max = None if alpha_max is None else tightness * alpha_max
        if literal and self.gamma_max is not None and self.gamma_max <= 1:
            raise ValueError(
                f"literal is true and gamma_max times tightness {self.gamma_max:g}, but γ alone then scales "
                "and starts at 1, which lies below its limit: take gamma_max above "
                f"{1 / tightness:.3g}, null, or literal: false, whose scale is 1 + γ."
            )
        self.bound = bound
        self.literal = literal

    def build(self, hidden_size: int, *, condition_size: int, sublayers: int, gated: bool) -> nn.Module:
        return Modulation(
            hidden_size,
            condition_size=condition_size,
            sublayers=sublayers,
            gated=gated,
            project=optional_bound(ConditionProjection, self.c_max),
            scale_bound=optional_bound(self.bound, self.gamma_max),
            shift_bound=optional_bound(self.bound, self.beta_max),
            gate_bound=optional_bound(self.bound, self.alpha_max),
            literal=self.literal,
        )
