"""Where images come from: one small class per data set or format, chosen by class_path."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_dp.images.data.table import ImageTable, JoinedTable

Split = Literal["train", "test"]


class ImageSource(ABC):
    """A data set with a name and up to two splits.

    Attributes:
        dataset_id: the name under which ledgers and results know it.
        class_names: of its labels, in their order; a public fact.
        public: whether anyone may see the images.
        has_captions: whether its tables hold a text for each image.
    """

    public: bool = False
    has_captions: bool = False
    dataset_id: str
    class_names: tuple[str, ...]

    @abstractmethod
    def files(self) -> list[Path]:
        """The files and folders that hold the images, whether or not they are there."""

    @abstractmethod
    def open(self, split: Split) -> ImageTable | None:
        """The images of a split; None where there is no such split.

        Raises:
            ValueError: a file is missing or wrong, in one sentence.
        """


class Joined(ImageSource):
    """Several public sets as one, with the classes of another data set where names correspond.

    Args:
        sources: the sets; those without a test split contribute to train only.
        class_names: the classes of the result; [] leaves everything unlabelled.
        labels: from a class name of any source to numbers of `class_names`, over which its images are spread
            in turn (public shoes may stand for sandals, sneakers and boots at once). Images of a class that
            is not named stay unlabelled.
        dataset_id: name of the result; None joins those of the sources.
    """

    def __init__(
        self,
        *,
        sources: Sequence[ImageSource],
        class_names: Sequence[str] = (),
        labels: Mapping[str, Sequence[int]] | None = None,
        dataset_id: str | None = None,
    ) -> None:
        if not sources:
            raise ValueError("Joined.sources is empty: name at least one.")
        self._labels = {} if labels is None else {name: list(numbers) for name, numbers in labels.items()}
        for name, numbers in self._labels.items():
            if not numbers or not all(0 <= number < len(class_names) for number in numbers):
                raise ValueError(
                    f"Joined.labels gives {name!r} the numbers {numbers}; they are counted from 0, at least "
                    f"one, and class_names has {len(class_names)} entries."
                )
        known = {name for source in sources for name in source.class_names}
        unknown = sorted(set(self._labels) - known)
        if unknown:
            raise ValueError(
                f"Joined.labels names the class {unknown[0]!r}, which no source has; they have "
                f"{', '.join(sorted(known))[:200]}."
            )
        self.sources = list(sources)
        self.class_names = tuple(class_names)
        self.public = all(source.public for source in sources)
        self.has_captions = all(source.has_captions for source in sources)
        self.dataset_id = dataset_id or "+".join(source.dataset_id for source in sources)

    def files(self) -> list[Path]:
        """Those of all its sources."""
        return [path for source in self.sources for path in source.files()]

    def open(self, split: Split) -> ImageTable | None:
        tables = [table for table in (source.open(split) for source in self.sources) if table is not None]
        if not tables:
            return None
        labels = np.concatenate([self._relabel(table) for table in tables])
        return JoinedTable(tables, labels=labels, class_names=self.class_names)

    def _relabel(self, table: ImageTable) -> np.ndarray:
        labels = np.full(len(table), -1, dtype=np.int64)
        for number, name in enumerate(table.class_names):
            if name in self._labels:
                own = np.flatnonzero(table.labels == number)
                labels[own] = np.resize(self._labels[name], len(own))
        return labels
