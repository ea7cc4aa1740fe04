"""Where synthetic samples come from: a simulator, a public set, somebody's model behind an interface."""

from abc import ABC, abstractmethod

import numpy as np


class SampleAPI(ABC):
    """RANDOM_API and VARIATION_API of Private Evolution (Lin et al., arXiv 2305.15560, §4).

    A sample is whatever an API needs to vary it: the data itself, or what the data is rendered from, such
    as a simulator's parameters. Samples go through votes, selection and the state of a run as they are;
    `render` is asked for where they have to be seen.

    An API knows public things only. What it is asked for depends on private data through noisy votes
    alone, so its answers are post-processing, and whoever runs it learns no more than the votes say.
    """

    @abstractmethod
    def random(self, labels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        """One fresh sample per label, (n, …), n ≥ 1.

        Args:
            labels: (n,) classes, −1 for none; an API that knows no classes ignores them.
            rng: all of the answer's randomness, so that a resumed run asks for the same again.
        """

    @abstractmethod
    def vary(
        self, samples: np.ndarray, labels: np.ndarray, *, degree: float, rng: np.random.Generator
    ) -> np.ndarray:
        """One variation of each sample, (n, …).

        Args:
            samples: (n, …), as this API made them.
            labels: (n,), theirs.
            degree: in [0, 1]: how far from the sample, 1 for as far as the API can go.
            rng: as in `random`.
        """

    def render(self, samples: np.ndarray) -> np.ndarray:
        """(n, …) samples as this API made them → (n, …) as the private rows are, always the same of one.

        The samples themselves, for an API that makes rows.
        """
        return samples

    @abstractmethod
    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
