"""A program that draws images as the API of Private Evolution (Sim-PE, Lin et al., arXiv 2502.05505)."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import get_args

import numpy as np
from PIL import Image

from lightning_dp.evolution.api import SampleAPI
from lightning_dp.images.data.pixels import Mode
from lightning_dp.images.evolution.parameters import Parameter


class Renderer(SampleAPI):
    """Samples are parameters, (n, 1 + P) fp64: what is drawn, and how. Images are rendered from them alone.

    So parameters go through votes and selection and are varied from where they are, and an image is never
    varied for itself. What is drawn, the subject, is of the sample's class and stays so; with several
    subjects to a class a variation may change to another of them.

    Args:
        subjects: for each class, in the data's order, the numbers of what may be drawn for it. A sample of
            no class shows any of all.
        parameters: how it is drawn.
        size: S ≥ 4 pixels.
        mode: grey or rgb, as the data's.

    Raises:
        ValueError: nothing to draw, or an impossible size or mode.
    """

    def __init__(
        self, subjects: Sequence[Sequence[int]], parameters: Sequence[Parameter], *, size: int, mode: Mode
    ) -> None:
        kind = type(self).__name__
        if size < 4:
            raise ValueError(f"{kind}.size is {size}; it must be at least 4 pixels, and data.size's.")
        if mode not in get_args(Mode):
            raise ValueError(f"{kind}.mode is {mode!r}; it must be data.mode, grey or rgb.")
        self.size, self.mode = size, mode
        self._subjects = [np.asarray(own, dtype=np.float64) for own in subjects]
        self._parameters = tuple(parameters)

    def random(self, labels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        columns = [parameter.random(len(labels), rng=rng) for parameter in self._parameters]
        return np.stack([self._drawn(labels, rng=rng), *columns], axis=1)

    def vary(
        self, samples: np.ndarray, labels: np.ndarray, *, degree: float, rng: np.random.Generator
    ) -> np.ndarray:
        subject = np.where(rng.random(len(samples)) < degree, self._drawn(labels, rng=rng), samples[:, 0])
        columns = [
            parameter.vary(samples[:, number], degree=degree, rng=rng)
            for number, parameter in enumerate(self._parameters, start=1)
        ]
        return np.stack([subject, *columns], axis=1)

    def render(self, samples: np.ndarray) -> np.ndarray:
        """(n, 1 + P) → (n, C, S, S) uint8."""
        names = [parameter.name for parameter in self._parameters]
        images = [
            np.asarray(self.draw(int(row[0]), **dict(zip(names, row[1:].tolist(), strict=True))))
            for row in samples
        ]
        stacked = np.stack(images)  # (n, S, S) or (n, S, S, 3)
        return stacked[:, None] if self.mode == "grey" else np.moveaxis(stacked, -1, 1)

    @abstractmethod
    def draw(self, subject: int, **values: float) -> Image.Image:
        """One image of S × S, of Pillow's mode `pillow_mode`.

        Args:
            subject: its number.
            values: of the parameters, by name.
        """

    @property
    def pillow_mode(self) -> str:
        """Pillow's name of the mode."""
        return "L" if self.mode == "grey" else "RGB"

    def _drawn(self, labels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        """(n,) a subject for each label."""
        if labels.max() >= len(self._subjects):
            raise ValueError(
                f"{type(self).__name__} knows what to draw for {len(self._subjects)} classes, but the data "
                f"has a class number {labels.max()}: give it one entry for each of the data's classes."
            )
        drawn = np.empty(len(labels))
        for label in np.unique(labels):
            own = np.concatenate(self._subjects) if label < 0 else self._subjects[label]
            rows = np.flatnonzero(labels == label)
            drawn[rows] = rng.choice(own, size=len(rows))
        return drawn
