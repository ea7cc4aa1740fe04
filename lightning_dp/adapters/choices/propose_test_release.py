"""The choice as it is, where a test says that no unit could change it: the other one in DP-SAPF's code."""

from typing import final

import numpy as np

from lightning_dp.adapters.choices.choice import Choice, ChoiceFacts
from lightning_dp.adapters.scores.score import PrivateScore
from lightning_dp.privacy.release import Mechanism
from lightning_dp.privacy.top_k import GapTestedTopK


@final
class ProposeTestRelease(Choice):
    """The gap after the last chosen score, with noise of σΔ, has to be above a threshold, else the fit stops.

    The threshold follows from δ (`privacy.top_k.GapTestedTopK`); in their code it is two standard deviations,
    which one unit passes or fails by chance, and the fallback is the choice without noise.

    Args:
        failure_share: in (0, 1), share of the fit's δ that the test may fail with.
    """

    def __init__(self, *, failure_share: float = 0.01) -> None:
        if not 0 < failure_share < 1:
            raise ValueError(
                f"ProposeTestRelease.failure_share is {failure_share}, but it is a share of δ in (0, 1): "
                "0.01 is usual"
            )
        self.failure_share = failure_share

    def mechanism(self, score: PrivateScore, facts: ChoiceFacts) -> Mechanism[np.ndarray]:
        return GapTestedTopK(
            noise_multiplier=facts.noise_multiplier,
            sampling_rate=facts.sampling_rate,
            largest=score.largest(number=facts.number),
            dimension=facts.dimension,
            number=facts.number,
            failure=self.failure_share * facts.delta,
        )

    def scores(self, answer: np.ndarray) -> np.ndarray:
        if not answer.any():
            raise ValueError(
                "ProposeTestRelease chose nothing, and the charge stays: the gap after the last chosen "
                "score is too small to say that no unit could change the choice. Take another "
                "SaliencyLoRA.ratio, a smaller noise_multiplier, or choices.noisy_sums.NoisySums"
            )
        return answer
