"""What a release before training may cost: a noise multiplier, or a share of the fit's target ε."""

from typing import final

from lightning_dp.privacy.plan import calibrate_noise_multiplier


@final
class ReleaseCost:
    """Gaussian releases that together are as good as one of a noise multiplier.

    Args:
        owner: the class to name in errors.
        noise_multiplier: σ > 0; or
        budget_share: share in (0, 1) of the target ε that the releases alone would cost, at the same δ.
            Give one of the two; neither is `usual_share`.
        usual_share: in (0, 1).

    Raises:
        ValueError: one is out of range, or both are given.
    """

    def __init__(
        self,
        owner: str,
        *,
        noise_multiplier: float | None,
        budget_share: float | None,
        usual_share: float,
    ) -> None:
        if noise_multiplier is not None and budget_share is not None:
            raise ValueError(
                f"{owner} has both noise_multiplier and budget_share, but one follows from the other: leave "
                "one out"
            )
        if noise_multiplier is not None and not 0 < noise_multiplier < float("inf"):
            raise ValueError(f"{owner}.noise_multiplier is {noise_multiplier}, but it must be above 0")
        if budget_share is not None and not 0 < budget_share < 1:
            raise ValueError(f"{owner}.budget_share is {budget_share}, but it is a share in (0, 1)")
        self._owner = owner
        self._noise_multiplier = noise_multiplier
        self._share = usual_share if budget_share is None else budget_share

    def noise_multiplier(self, *, target_epsilon: float | None, delta: float) -> float:
        """σ for a fit.

        Args:
            target_epsilon: of the fit, None where only its noise is given.
            delta: of the fit.

        Raises:
            ValueError: it would be a share of nothing.
        """
        if self._noise_multiplier is not None:
            return self._noise_multiplier
        if target_epsilon is None:
            raise ValueError(
                f"{self._owner}.budget_share is a share of privacy.target_epsilon, which is not set: give "
                f"{self._owner}.noise_multiplier"
            )
        return calibrate_noise_multiplier(
            target_epsilon=self._share * target_epsilon, delta=delta, sampling_rate=1.0, num_steps=1
        )
