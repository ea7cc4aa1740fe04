"""Denoisers in closed form, to whose estimate a network adds what they leave open."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit

Known = TypeVar("Known")


class BaseDenoiser(nn.Module, ABC, Generic[Known]):
    """E[x_0 | x_t] under a distribution that is simple enough to write it down.

    A `DiffusionModule` adds it to the output of its network, in whatever the network predicts. The network
    has only to learn what the distribution misses, and one of zeros already samples from it.

    No row may depend on another, as in a network. What it learns of private data is a release that
    `preparations` lists; whatever is computed from a row's own condition costs no privacy.

    Shapes: R rows, then any dimensions.
    """

    @abstractmethod
    def clean(self, noisy: Tensor, known: Known, *, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t].

        Args:
            noisy: (R, …) x_t = α·x_0 + σ·ε.
            known: what the implementation has to be told of these rows, such as their classes.
            alpha: (R or 1, 1, …).
            sigma: (R or 1, 1, …) > 0.

        Returns:
            (R, …).
        """

    def preparations(
        self, module: Any, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """The releases about private data that it is made of, in order; none for most.

        Args:
            module: the `DiffusionModule` that it belongs to.
            unit, target_epsilon, delta: of the fit.
        """
        return []

    def fit_exactly(self, module: Any, batches: Iterable[Any]) -> None:  # most learn nothing
        """Learn from the train set without noise what `preparations` releases; in a fit without privacy."""

    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
        return {}


def with_current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which a base denoiser is called so; images had it as `prior` up to version 0.1."""
    return {
        f"base_denoiser.{name.removeprefix('prior.')}" if name.startswith("prior.") else name: value
        for name, value in state.items()
    }
