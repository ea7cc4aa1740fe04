"""The ranges of `DifferentialPrivacy`'s arguments, checked before anything else happens."""

from collections.abc import Mapping
from numbers import Integral

from lightning_dp.callbacks.weights_account import check_public_start
from lightning_dp.fit.declared_unit import check_unit
from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.plan import DeltaRule, check_delta_or_rule
from lightning_dp.privacy.preflight import check_accept


def check_settings(
    *,
    target_epsilon: float | None,
    delta: float | DeltaRule,
    noise_multiplier: float | None,
    max_grad_norm: float,
    counts: Mapping[str, object],
    accept: Mapping[str, str],
    unit: object,
    public_start: object,
) -> None:
    """Raise ValueError naming the first argument that is out of range.

    Args:
        target_epsilon, delta, noise_multiplier, max_grad_norm, accept, unit, public_start: see
            `DifferentialPrivacy`.
        counts: name → value of what must be a whole number of at least 1, or None.
    """
    if (target_epsilon is None) == (noise_multiplier is None):
        raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
    if target_epsilon is not None and not target_epsilon > 0:
        raise ValueError(
            f"privacy.target_epsilon must be above 0, not {target_epsilon}; to train without privacy "
            "write 'privacy: null'"
        )
    check_delta_or_rule(delta)
    for name, value in (("max_grad_norm", max_grad_norm), ("noise_multiplier", noise_multiplier)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"privacy.{name} must be a number above 0, not {value}")
    for name, count in counts.items():
        whole = isinstance(count, Integral) and not isinstance(count, bool)
        if count is not None and not (whole and count >= 1):  # type: ignore[operator]
            raise ValueError(f"privacy.{name} must be a whole number of at least 1, not {count!r}")
    check_accept(accept)
    check_unit(unit)
    check_public_start(public_start)


def physical_batch_size_for(engine: ClippingEngine, given: int | None) -> int | None:
    """What an engine that computes few units at once makes of `privacy.physical_batch_size`.

    Raises:
        ValueError: more was asked for.
    """
    most = engine.units_at_once
    if most is None:
        return given
    if given not in (None, most):
        raise ValueError(
            f"privacy.physical_batch_size must be {most} or left out, not {given}, for "
            f"privacy.clipping_engine={type(engine).__name__}"
        )
    return most
