"""The public facts of one Private Evolution, fixed before any private row is read."""

from dataclasses import dataclass
from functools import lru_cache

from lightning_dp.privacy.accounting import GaussianEvent, check_delta, epsilon_pld
from lightning_dp.privacy.plan import PrivacyPlan, calibrate_noise_multiplier
from lightning_dp.privacy.units import PrivacyUnit


@dataclass(frozen=True, kw_only=True)
class VotesPlan:
    """T noisy histograms, in each of which the votes of one unit have an ℓ2 norm of at most 1.

    Attributes:
        noise_multiplier: σ > 0; the standard deviation of the noise, in votes of a unit that casts one.
        iterations: T ≥ 1.
        delta: δ in (0, 1).
    """

    noise_multiplier: float
    iterations: int
    delta: float

    def __post_init__(self) -> None:
        check_delta(self.delta)
        self.event(self.iterations)  # checks σ

    def event(self, iterations: int) -> GaussianEvent:
        """What so many votes release: nobody is sampled, so nothing is amplified."""
        return GaussianEvent(noise_multiplier=self.noise_multiplier, sampling_rate=1.0, steps=iterations)

    def epsilon_after(self, iterations: int) -> float:
        """ε per unit after so many votes (PLD)."""
        return _epsilon(self.event(iterations), self.delta)

    @property
    def epsilon(self) -> float:
        """ε per unit at the end."""
        return self.epsilon_after(self.iterations)

    def to_dict(self, unit: PrivacyUnit) -> dict[str, object]:
        """Public facts for reports, JSON-ready, under the names that training has for them.

        Args:
            unit: what is protected, and how many there are.
        """
        # The same events as of training in which every batch is the whole data set.
        whole = PrivacyPlan(
            unit=unit,
            expected_batch_size=unit.num_units,
            num_steps=self.iterations,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=1.0,
            delta=self.delta,
        ).to_dict()
        own = {
            "sampling": "none: every unit votes in every iteration",
            "mechanism": "votes, a unit's bounded to an ℓ2 norm of 1, with Gaussian noise",
        }
        left_out = ("max_grad_norm", "expected_batch_size", "prior_releases")
        return {**{name: value for name, value in whole.items() if name not in left_out}, **own}


@lru_cache(maxsize=256)
def _epsilon(event: GaussianEvent, delta: float) -> float:
    return epsilon_pld([event], delta)


@dataclass(frozen=True, kw_only=True)
class VotesPrivacy:
    """What may be spent, and where it is written down.

    Attributes:
        target_epsilon: ε > 0 of all iterations together, or None if `noise_multiplier` is given.
        delta: δ in (0, 1), at most 1 / number of units to mean anything.
        noise_multiplier: σ > 0, in votes, or None if `target_epsilon` is given.
        dataset: the name under which the ledger keeps the account of this data; None for the data's own.
        ledger: path of the ledger; None is LIGHTNING_DP_LEDGER or the user's data folder.
    """

    target_epsilon: float | None = None
    delta: float
    noise_multiplier: float | None = None
    dataset: str | None = None
    ledger: str | None = None

    def __post_init__(self) -> None:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")

    def plan(self, iterations: int) -> VotesPlan:
        """The plan with the given noise, or with the least that meets the target.

        Raises:
            ValueError: no plan does.
        """
        noise_multiplier = self.noise_multiplier
        if noise_multiplier is None:
            assert self.target_epsilon is not None
            noise_multiplier = calibrate_noise_multiplier(
                target_epsilon=self.target_epsilon,
                delta=self.delta,
                sampling_rate=1.0,
                num_steps=iterations,
            )
        return VotesPlan(noise_multiplier=noise_multiplier, iterations=iterations, delta=self.delta)
