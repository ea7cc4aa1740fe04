"""What of a network trains: the interface, and what every choice has in common.

Few trainable parameters are the way to quality at a small ε: noise is added to each of them. Scope:
networks of any kind; an adapter goes by types and by roles that a network declares, never by task.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import nn

from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit


class Adapter(ABC):
    """A choice of parameters; all others are frozen.

    A choice made by `choose`, from types and names, costs no privacy. One that looks at private rows is a
    release: `preparations` lists it, and `begin_fit` freezes what was not chosen. Whoever owns an adapter
    calls `apply` before optimizers are made, hands its `preparations` on among its own, and calls
    `begin_fit` in Lightning's `on_fit_start`, `begin_step` in `on_train_batch_start` and `mask_gradients` in
    `on_before_optimizer_step`.
    """

    def __init__(self) -> None:
        self._trainable: int | None = None

    @abstractmethod
    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        """The parameters of `module` that train; may first add some to it.

        Raises:
            ValueError: the module has nothing of the kind, or an option matches nothing in it.
        """

    @final
    def apply(self, module: nn.Module) -> None:
        """Set `requires_grad` of every parameter of `module`; called once, before optimizers are made.

        Raises:
            ValueError: nothing would train.
        """
        train_only(module, self.choose(module), chosen_by=type(self).__name__)
        self._trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)

    def preparations(
        self, module: Any, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """What has to be learnt about private data before the first step; nothing, for most.

        Args:
            module: the LightningModule that is trained.
            unit, target_epsilon, delta: of the fit, as for a module's `preparations`.
        """
        return []

    def begin_fit(self, module: Any) -> None:  # noqa: B027  # nothing is left to do, for most
        """Narrow the choice of `apply`, after weights to start from and checkpoints were loaded.

        Called in every process, after the releases of `preparations` and before clipping is set up.

        Raises:
            ValueError: there should have been a release, and was none.
        """

    def begin_step(self, step: int) -> None:  # noqa: B027  # nothing changes, for most
        """Do what this optimizer step does otherwise than others; called before each of its batches.

        Whatever it is must be public: a function of the configuration and of the step alone, and so the same
        for all units, physical batches and processes.

        Args:
            step: counted from 0 over resumes.
        """

    def mask_gradients(self) -> None:  # noqa: B027  # all of them are used, for most
        """Zero the gradients that `begin_step` left no use for; called after noise, before the optimizer."""

    def report(self) -> dict[str, Any]:
        """What was chosen by score, JSON-ready; {} for an adapter that chooses otherwise."""
        return {}

    def replaced(self) -> list[str]:
        """Names of frozen parameters that are no longer what they were when the network was made."""
        return []

    def left_frozen(self, state: Mapping[str, Any]) -> list[str]:
        """Names of parameters that could train, and that the choice in a saved state left frozen."""
        return []

    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
        facts: dict[str, str | float | int] = {"adapter": type(self).__name__}
        if self._trainable is not None:
            facts["trainable_parameters"] = self._trainable
        return facts


def train_only(module: nn.Module, parameters: Iterable[nn.Parameter], *, chosen_by: str) -> None:
    """Freeze all of `module` but `parameters`.

    Args:
        module: changed in place.
        parameters: those that train; such that are not part of the module count for nothing.
        chosen_by: the class to name in the error.

    Raises:
        ValueError: none of them is in the module.
    """
    chosen = {id(parameter) for parameter in parameters}
    own = list(module.parameters())
    if not any(id(parameter) in chosen for parameter in own):
        raise ValueError(
            f"adapter {chosen_by} finds nothing to train in {type(module).__name__}: choose an adapter "
            "whose parameters it has, or adapters.full.Full"
        )
    for parameter in own:
        parameter.requires_grad_(id(parameter) in chosen)
