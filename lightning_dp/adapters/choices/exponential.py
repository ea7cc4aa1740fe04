"""By the exponential mechanism, matrix after matrix: the first alternative in the code of DP-SAPF."""

from typing import final

import numpy as np

from lightning_dp.adapters.choices.choice import Choice, ChoiceFacts
from lightning_dp.adapters.scores.score import PrivateScore
from lightning_dp.privacy.release import Mechanism
from lightning_dp.privacy.top_k import ExponentialTopK


@final
class Exponential(Choice):
    """A matrix of score u is drawn with the weight exp(u / (2σΔ)), Δ the most that a unit adds to one score.

    The names are published and no score is. The temperature is that of their code; each draw costs a range of
    1 / 2σ, and there are as many draws as matrices that are chosen (`privacy.top_k.ExponentialTopK`).
    """

    def mechanism(self, score: PrivateScore, facts: ChoiceFacts) -> Mechanism[np.ndarray]:
        return ExponentialTopK(
            noise_multiplier=facts.noise_multiplier,
            sampling_rate=facts.sampling_rate,
            largest=score.largest(number=facts.number),
            dimension=facts.dimension,
            number=facts.number,
        )
