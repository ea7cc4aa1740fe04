"""What a privacy report may claim, from the mechanisms that it records: nothing in it is believed.

A claim is too small where ε of the recorded mechanisms is larger. Reports say who protects what (unit,
relation, δ) and what was released (σ, q, steps, other releases); ε is computed from these anew.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lightning_dp.privacy.accounting import (
    COARSE_INTERVAL,
    Event,
    GaussianEvent,
    epsilon_pld,
    event_from_dict,
)
from lightning_dp.privacy.plan import RELATION

TOLERANCE = 1e-6
"""A share of ε: what rounding may take away between two computations of one figure."""


class ClaimError(ValueError):
    """A report, checkpoint or result that claims less than was spent, or can't be computed again."""


def claimed_epsilon(report: Mapping[str, Any]) -> float:
    """ε that a report claims: a number of at least 0, ∞ without privacy.

    Raises:
        ClaimError: it claims none.
    """
    value = report.get("epsilon_spent")
    try:
        epsilon = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        epsilon = math.nan
    if not epsilon >= 0:
        raise ClaimError(f"epsilon_spent is {value!r}, which is no ε of at least 0")
    return epsilon


def mechanisms_of(report: Mapping[str, Any]) -> tuple[Event, ...]:
    """Everything that a private report says was released.

    Reports of older versions don't list it; there it follows from σ, q, the steps charged and the releases
    before them.

    Raises:
        ClaimError: the report doesn't say, or says different things in different fields.
    """
    try:
        sigma, rate = float(report["noise_multiplier"]), float(report["sampling_rate"])
        own = GaussianEvent(noise_multiplier=sigma, sampling_rate=rate, steps=_steps(report))
        prior = tuple(event_from_dict(one) for one in report.get("prior_releases") or ())
        if "mechanisms" not in report:
            if any(entry.get("runs") for entry in report.get("weights_seen") or ()):
                raise ClaimError(
                    "its weights went through earlier private runs, of which this report of an older version "
                    "doesn't list the mechanisms"
                )
            return (*prior, own)
        listed = tuple(event_from_dict(one) for one in report["mechanisms"])
    except KeyError as error:
        raise ClaimError(f"it doesn't say {error.args[0]}") from error
    except ClaimError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise ClaimError(f"its mechanisms can't be read ({error})") from error
    for event in (*prior, *([own] if own.steps else [])):
        if event not in listed:
            raise ClaimError(
                f"its fields noise_multiplier, sampling_rate, steps_charged and prior_releases say {event}, "
                "and its mechanisms don't hold that"
            )
    return listed


def _steps(report: Mapping[str, Any]) -> int:
    steps = report["steps_charged"]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ClaimError(f"steps_charged is {steps!r}, which is no number of steps")
    return steps


def delta_of_report(report: Mapping[str, Any]) -> float:
    """δ of a private report.

    Raises:
        ClaimError: it has none in (0, 1).
    """
    delta = report.get("delta")
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        raise ClaimError(f"delta is {delta!r}, which is not between 0 and 1")
    return float(delta)


def check_at_least(claimed: float, *, events: tuple[Event, ...], delta: float, what: str) -> None:
    """Raise ClaimError where a claim is smaller than ε (PLD) of what was released.

    Args:
        claimed: ε ≥ 0.
        events: what was released.
        delta: δ of both.
        what: says so, for the sentence: "what the checkpoint says was released".
    """
    # Of the two upper bounds the coarse one is the larger, and quick: few claims need the other.
    if math.isinf(claimed) or claimed >= _coarse(events, delta):
        return
    least = epsilon_pld(events, delta)
    if claimed < least * (1 - TOLERANCE):
        raise ClaimError(f"it claims ε = {claimed:.6g}, and {what} costs {least:.6g} at δ = {delta:g}")


@lru_cache(maxsize=1024)
def _coarse(events: tuple[Event, ...], delta: float) -> float:
    """Many runs of a study were made by one plan."""
    return epsilon_pld(events, delta, interval=COARSE_INTERVAL)


def check_report(report: Mapping[str, Any]) -> None:
    """Raise ClaimError unless a report's ε is at least that of the mechanisms that it records.

    A report without privacy claims ∞, which is never too small.
    """
    claimed = claimed_epsilon(report)
    if math.isinf(claimed):
        return
    if report.get("relation", RELATION) != RELATION:
        raise ClaimError(f"relation is {report['relation']!r}; only {RELATION!r} can be computed again")
    delta = delta_of_report(report)
    check_at_least(
        claimed, events=mechanisms_of(report), delta=delta, what="what it records in its mechanisms"
    )
    unit = report.get("unit")
    of_units = report.get("epsilon_of_unit") or {}
    planned = of_units.get(unit) if isinstance(of_units, Mapping) else None
    if planned is not None and float(planned) < float(report.get("epsilon", 0.0)) * (1 - TOLERANCE):
        raise ClaimError(
            f"epsilon_of_unit says {planned} for {unit}, and epsilon of the plan is {report['epsilon']}"
        )
