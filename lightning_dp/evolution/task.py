"""What Private Evolution has to know of one kind of data; everything else is the same for all kinds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_dp.privacy.units import PrivacyUnit, UnitName


@dataclass(frozen=True, kw_only=True)
class PrivateRows:
    """All private rows, in memory; made after the ledger was charged.

    Attributes:
        samples: (R, …), as the API makes its own.
        labels: (R,) int64 classes, −1 where unknown.
        owners: (R,) int64 in [0, N): the unit each row belongs to.
        unit: what is protected, and N.
    """

    samples: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    unit: PrivacyUnit


class EvolutionTask(ABC):
    """One private data set.

    Attributes:
        dataset_id: the name under which the ledger keeps its account.
        unit_name: of the privacy unit.
        class_names: a public fact; each class gets as many samples as any other. () is no classes.
        sample_shape: (…) of one sample.
    """

    dataset_id: str
    unit_name: UnitName
    class_names: tuple[str, ...]
    sample_shape: tuple[int, ...]

    @abstractmethod
    def prepare(self) -> None:
        """Make sure that the files are there; no row is looked at."""

    @abstractmethod
    def read(self) -> PrivateRows:
        """Every private row; called once, after the first charge."""

    @abstractmethod
    def write(self, folder: Path, samples: np.ndarray, labels: np.ndarray) -> None:
        """Put the finished synthetic set into the run folder, with a picture of it.

        Args:
            folder: of the run; its privacy report is there.
            samples: (n, …).
            labels: (n,).
        """

    def read_samples(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """What `write` put there: samples (n, …) and labels (n,).

        Raises:
            ValueError: the run has not finished, or its samples can't be read back.
        """
        raise ValueError(
            f"the samples of {folder} can't be read back, as {type(self).__name__} has no read_samples: take "
            "its files."
        )

    @abstractmethod
    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
