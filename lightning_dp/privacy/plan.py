"""The public facts of one private training run, fixed before any private row is read.

A plan says how many units there are, how they are sampled, how often, how much noise is added, and
therefore what the run will have cost when it ends. A plan that can't be met is refused here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Literal, Self, get_args

from scipy.optimize import brentq

from lightning_dp.privacy.accounting import (
    COARSE_INTERVAL,
    FINE_INTERVAL,
    Event,
    GaussianEvent,
    check_delta,
    epsilon_pld,
    epsilon_rdp,
    event_to_dict,
    grid_of,
    group_epsilon,
)
from lightning_dp.privacy.units import PrivacyUnit

DeltaRule = Literal["1/(N ln N)"]
"""A δ that follows from N, which is public: smaller than 1 / N, and the usual one in image synthesis."""

_LARGEST_NOISE_MULTIPLIER = 1e4
_SMALLEST_NOISE_MULTIPLIER = 0.05
_REPORT_POINTS = 40

RELATION = "add or remove one unit"
"""Of neighbouring train sets, as reports say it; whoever computes ε again knows no other."""


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """DP-SGD with Poisson sampling over units, add-or-remove-one adjacency.

    Attributes:
        unit: what is protected and how many there are.
        expected_batch_size: B in [1, N], units in an average batch; the public divisor of the update.
        num_steps: ≥ 1, optimizer steps.
        noise_multiplier: σ > 0; the clipped sum gets noise of standard deviation σ · max_grad_norm.
        max_grad_norm: C > 0, bound on the ℓ2 norm of one unit's contribution.
        delta: δ in (0, 1).
        prior: releases of the same run before its first step, such as normalisation constants.
        earlier: what earlier runs of the same weights charged to the same account. Part of every ε here,
            never of what this run is charged.
    """

    unit: PrivacyUnit
    expected_batch_size: int
    num_steps: int
    noise_multiplier: float
    max_grad_norm: float
    delta: float
    prior: tuple[Event, ...] = ()
    earlier: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        check_sampling(self.unit, self.expected_batch_size, self.num_steps)
        check_delta(self.delta)
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"noise_multiplier must be a number above 0, not {self.noise_multiplier}")
        if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0):
            raise ValueError(f"max_grad_norm must be a number above 0, not {self.max_grad_norm}")

    @classmethod
    def make(
        cls,
        unit: PrivacyUnit,
        *,
        expected_batch_size: int,
        num_steps: int,
        target_epsilon: float | None,
        noise_multiplier: float | None,
        max_grad_norm: float,
        delta: float,
        prior: Sequence[Event] = (),
    ) -> Self:
        """The plan with a given noise multiplier or, for None, with the least that meets the target.

        Raises:
            ValueError: the plan is impossible, or its releases before training leave nothing for it.
        """
        check_sampling(unit, expected_batch_size, num_steps)
        if noise_multiplier is None:
            assert target_epsilon is not None
            noise_multiplier = calibrate_noise_multiplier(
                target_epsilon=target_epsilon,
                delta=delta,
                sampling_rate=expected_batch_size / unit.num_units,
                num_steps=num_steps,
                prior=prior,
            )
        return cls(
            unit=unit,
            expected_batch_size=expected_batch_size,
            num_steps=num_steps,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            delta=delta,
            prior=tuple(prior),
        )

    @property
    def sampling_rate(self) -> float:
        """q = B / N, each unit's chance to be in one batch."""
        return self.expected_batch_size / self.unit.num_units

    def event(self, steps: int) -> GaussianEvent:
        """What `steps` steps of this plan release."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=steps
        )

    def events(self, steps: int) -> list[Event]:
        """Everything that is released up to the end of `steps` steps."""
        return [*self.prior, self.event(steps)]

    def events_of_weights(self, steps: int) -> list[Event]:
        """Everything that the weights have released by then, in earlier runs too."""
        return [*self.earlier, *self.events(steps)]

    @cached_property
    def epsilon(self) -> float:
        """ε per unit at the end of the plan (PLD)."""
        return epsilon_pld(self.events_of_weights(self.num_steps), self.delta)

    @property
    def grid(self) -> tuple[float, float]:
        """On which grid of the privacy loss ε was computed, and about how much it is too high at most."""
        return grid_of(self.events_of_weights(self.num_steps), self.delta)

    @cached_property
    def epsilon_rdp(self) -> float:
        """The same by Rényi composition: larger, shown as a check."""
        return epsilon_rdp(self.events_of_weights(self.num_steps), self.delta)

    def epsilons(self) -> dict[str, float | None]:
        """ε of each privacy unit at the end of the plan; None where the unit is undefined here.

        `event` counts the windows that one time step touches as one group that is added or removed
        together.
        """
        event = None
        if self.unit.windows_per_event is not None:
            events = self.events_of_weights(self.num_steps)
            gaussian = [one for one in events if isinstance(one, GaussianEvent)]
            event = (
                group_epsilon(gaussian, self.delta, group_size=self.unit.windows_per_event)
                if len(gaussian) == len(events)
                else math.inf  # of other releases no bound for groups is known here
            )
        by_name: dict[str, float | None] = {"record": None, "window": None, "event": event, "user": None}
        by_name[self.unit.name] = self.epsilon
        return by_name

    def epsilon_after(self, steps: int) -> float:
        """ε per unit after `steps` steps: an upper bound that is cheap enough for every step.

        Computed at a few step counts and rounded up to the next of them; exact at the end.
        """
        if steps <= 0:
            return epsilon_pld([*self.earlier, *self.prior], self.delta)
        # ε grows about like √steps, so quadratic spacing makes equal increments of it.
        point = math.ceil(_REPORT_POINTS * math.sqrt(steps / self.num_steps) - 1e-9)
        rounded = max(steps, math.ceil(self.num_steps * (point / _REPORT_POINTS) ** 2))
        if steps <= self.num_steps <= rounded:
            return self.epsilon
        # The fast figure is a little above the exact one; during the plan it can't pass its end.
        fast = _fast_epsilon(tuple(self.events_of_weights(rounded)), self.delta)
        return min(fast, self.epsilon) if rounded <= self.num_steps else fast

    def to_dict(self) -> dict[str, object]:
        """Public facts for reports and the command line, JSON-ready."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.max_grad_norm,
            "sampling_rate": self.sampling_rate,
            "expected_batch_size": self.expected_batch_size,
            "num_units": self.unit.num_units,
            "num_steps": self.num_steps,
            "prior_releases": [event_to_dict(event) for event in self.prior],
            "unit": self.unit.name,
            "unit_description": self.unit.description,
            "unit_declared": self.unit.declared,
            "relation": RELATION,
            "sampling": "Poisson over units",
            "accountant": "PLD (dp-accounting)",
            "epsilon_rdp": self.epsilon_rdp,
            "epsilon_of_unit": self.epsilons(),
        }


@lru_cache(maxsize=1024)
def _fast_epsilon(events: tuple[Event, ...], delta: float) -> float:
    return epsilon_pld(events, delta, interval=COARSE_INTERVAL)


def check_sampling(unit: PrivacyUnit, expected_batch_size: int, num_steps: int) -> None:
    """Raise ValueError unless a batch fits the units and at least one step is planned."""
    if not 1 <= expected_batch_size <= unit.num_units:
        raise ValueError(
            f"expected_batch_size must be between 1 and the {unit.num_units} units there are, "
            f"not {expected_batch_size}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps must be ≥ 1, not {num_steps}; set trainer.max_steps")


def check_delta_or_rule(delta: float | DeltaRule) -> None:
    """Raise ValueError unless it is in (0, 1), or a rule that makes it of the number of units."""
    if isinstance(delta, str) and delta not in get_args(DeltaRule):
        raise ValueError(
            f"privacy.delta is {delta!r}, which is neither a number nor '{get_args(DeltaRule)[0]}': give one "
            "of the two"
        )
    if not isinstance(delta, str) and not 0 < delta < 1:
        raise ValueError(
            f"privacy.delta must be above 0 and below 1, not {delta}; take at most 1 / number of units"
        )


def delta_of(delta: float | DeltaRule, *, num_units: int) -> float:
    """δ for N units: as it is given, or by its rule.

    Raises:
        ValueError: the rule gives none for so few.
    """
    if not isinstance(delta, str):
        return delta
    if num_units < 2:
        raise ValueError(f"privacy.delta={delta} needs at least 2 units, not {num_units}: give a number")
    return 1 / (num_units * math.log(num_units))


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    num_steps: int,
    prior: Sequence[Event] = (),
) -> float:
    """The smallest σ, to 5 significant digits rounded up, whose PLD ε is at most the target.

    Args:
        target_epsilon: > 0, for `prior` and the steps together.
        delta: δ in (0, 1).
        sampling_rate: q in (0, 1].
        num_steps: ≥ 1.
        prior: releases that are made before training, whatever σ.

    Raises:
        ValueError: ε or δ out of range, `prior` alone costs the target, or no σ up to 10,000 meets it.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ValueError(
            f"target_epsilon must be a number above 0, not {target_epsilon}; "
            "for training without privacy write 'privacy: null'"
        )
    check_delta(delta)
    before = epsilon_pld(prior, delta)
    if before >= target_epsilon:
        raise ValueError(
            f"target_epsilon={target_epsilon} at delta={delta} can't be met: the releases before training "
            f"cost {before:.4g} alone; give them more noise or choose a larger epsilon"
        )

    @cache
    def excess(log_sigma: float, interval: float) -> float:
        """log ε over the target: nearly straight in log σ. An ε without bound is only known to be larger."""
        event = GaussianEvent(
            noise_multiplier=math.exp(log_sigma), sampling_rate=sampling_rate, steps=num_steps
        )
        epsilon = epsilon_pld([*prior, event], delta, interval=interval)
        return min(math.log(max(epsilon, 1e-12) / target_epsilon), 10.0)

    # A grid of the loss that is coarse against the target would round a small ε up beyond reach.
    fine = FINE_INTERVAL
    coarse = COARSE_INTERVAL if target_epsilon >= 0.5 else fine
    low = high = 0.0
    least = math.log(_SMALLEST_NOISE_MULTIPLIER)
    while excess(low, coarse) <= 0:
        if low == least:
            return _SMALLEST_NOISE_MULTIPLIER
        low, high = max(low - math.log(2), least), low
    while low == high or excess(high, coarse) > 0:
        low, high = high, high + math.log(2)
        if high > math.log(_LARGEST_NOISE_MULTIPLIER):
            raise ValueError(
                f"target_epsilon={target_epsilon} at delta={delta} can't be met with sampling rate "
                f"{sampling_rate:.4g} and {num_steps} steps, whatever the noise"
                + (f", after releases that cost {before:.4g}" if prior else "")
                + ": take fewer steps, a smaller expected_batch_size, or a larger epsilon"
            )
    rough = brentq(excess, low, high, args=(coarse,), xtol=1e-4, rtol=1e-6)
    # The exact accountant's answer is next to it, on the straight line through the last two figures.
    tried = {x: excess(x, fine) for x in (rough - 2e-4, rough)}
    for _ in range(6):
        (behind, its_value), (ahead, value) = list(tried.items())[-2:]
        if -1e-6 < value <= 0 or value == its_value:
            break
        beyond = ahead - (value + 2e-7) * (ahead - behind) / (value - its_value)
        tried[beyond] = excess(beyond, fine)
    best = math.exp(min([high, *(x for x, value in tried.items() if value <= 0)]))
    digits = 4 - math.floor(math.log10(best))
    result: float = math.ceil(best * 10**digits) / 10**digits
    return result
