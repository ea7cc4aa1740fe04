"""The space in which a private row looks for its nearest synthetic sample."""

from abc import ABC, abstractmethod

import numpy as np
from torch import Tensor


class Embedding(ABC):
    """Rows to vectors, made from public facts alone: a network fitted to private rows is a release."""

    @abstractmethod
    def embed(self, samples: np.ndarray) -> Tensor:
        """(n, …) → (n, D) fp32, row by row: no row sees another."""
