"""By sums of all matrices' scores with Gaussian noise, as DP-SAPF chooses (arXiv 2605.30312)."""

from typing import final

import numpy as np

from lightning_dp.adapters.choices.choice import Choice, ChoiceFacts
from lightning_dp.adapters.scores.score import PrivateScore
from lightning_dp.privacy.release import Mechanism, VectorSum


@final
class NoisySums(Choice):
    """All sums are published with noise of σ times the score's sensitivity; the largest are chosen."""

    by_sums = True

    def mechanism(self, score: PrivateScore, facts: ChoiceFacts) -> Mechanism[np.ndarray]:
        return VectorSum(
            noise_multiplier=facts.noise_multiplier,
            sampling_rate=facts.sampling_rate,
            max_norm=score.sensitivity(number=facts.number),
            dimension=facts.dimension,
        )
