"""How a private score becomes a choice of what trains: interface."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from lightning_dp.adapters.scores.score import PrivateScore
from lightning_dp.privacy.release import Mechanism


@dataclass(frozen=True, kw_only=True)
class ChoiceFacts:
    """What is known in public of one choice.

    Attributes:
        number: of matrices that are chosen.
        dimension: M candidates.
        noise_multiplier: σ > 0.
        delta: of the fit.
        sampling_rate: of its units, in (0, 1].
    """

    number: int
    dimension: int
    noise_multiplier: float
    delta: float
    sampling_rate: float


class Choice(ABC):
    """Makes the one release that a choice is, from public facts alone.

    Attributes:
        by_sums: whether sums of every matrix are published, so that whole layers can be chosen by them, and a
            Poisson sample of the units will do.
    """

    by_sums: bool = False

    @abstractmethod
    def mechanism(self, score: PrivateScore, facts: ChoiceFacts) -> Mechanism[np.ndarray]:
        """The mechanism, whose answer is (dimension,): the largest numbers are chosen.

        Args:
            score: what a unit adds, and how much at most.
            facts: about the release.
        """

    def scores(self, answer: np.ndarray) -> np.ndarray:
        """What to choose by, from the mechanism's answer.

        Raises:
            ValueError: it answers that there is nothing to choose by.
        """
        return answer
