"""A training step as it was when it began, to be run again without a trace.

Every run is on a copy of the module as it was then: buffers and attributes are copied, weights shared.
"""

import copy
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.observing import UnitNorms
from lightning_dp.privacy.draws import Draws
from lightning_dp.privacy.preflight.copies import copied


class CouldNotRun(Exception):
    """The step raised, or returned no loss to differentiate."""


@final
class Rerun:
    """One physical batch's step.

    Args:
        module: a copy for this, with the weights of the real one.
        loss: from a copy of the module and a batch to the loss. May change the copy, nothing else.
        device: where the step ran.
        keep: what the module refers to and copies share, such as a data set.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Callable[[nn.Module, Any], Any],
        device: torch.device,
        keep: tuple[Any, ...] = (),
    ) -> None:
        self._module = module
        self._loss = loss
        self._device = device
        self._keep = keep

    def gradient(self, batch: Any, *, draws: Draws) -> dict[str, Tensor]:
        """What plain autograd gives for a batch, by parameter name; what nothing reached is missing.

        Raises:
            CouldNotRun: see its reason.
        """
        module = self._copy()
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        try:
            with self._running(draws):
                self._backward(module, batch)
            return {name: p.grad for name, p in named.items() if p.grad is not None}
        finally:
            _forget_gradients(module)

    def measured(
        self,
        batch: Any,
        *,
        draws: Draws,
        engine: ClippingEngine,
        function: ClippingFunction,
        num_units: int,
        rows_per_unit: int,
    ) -> UnitNorms:
        """What an engine that is not attached to anything measures of a batch.

        Raises:
            CouldNotRun: the step or the engine raised.
        """
        module, seen = self._copy(), list[UnitNorms]()
        engine.attach(module, function=function, max_grad_norm=1.0)
        try:
            engine.observe(seen.append)
            with self._running(draws):
                engine.expect(unit_weights=torch.ones(num_units), rows_per_unit=rows_per_unit)
                with engine.stepping():
                    self._backward(module, batch)
                try:
                    engine.collect()
                except RuntimeError as error:
                    raise CouldNotRun from error
            return seen[-1]
        finally:
            engine.detach()
            _forget_gradients(module)

    def _copy(self) -> nn.Module:
        return copied(self._module, keep=self._keep)

    def _backward(self, module: nn.Module, batch: Any) -> None:
        # A copy, as a step may write into its batch.
        try:
            loss = self._loss(module, copy.deepcopy(batch))
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise CouldNotRun
            loss.backward()
        except Exception as error:
            raise CouldNotRun from error

    @contextmanager
    def _running(self, draws: Draws) -> Iterator[None]:
        # Unlike preflight's: with the products as exact as they were in the real step.
        with (
            warnings.catch_warnings(),
            torch.enable_grad(),
            torch.compiler.set_stance("force_eager"),
            draws.at_work(self._device),
        ):
            warnings.simplefilter("ignore")
            yield


def snapshot(module: nn.Module, *, keep: Sequence[Any], with_weights: bool = False) -> nn.Module:
    """A copy of a module that an engine may be attached to, without the engine; `keep` is shared.

    Weights are shared too, unless `with_weights`.
    """
    again = copied(module, keep=keep, with_weights=with_weights)
    for child in again.modules():
        own = child.__dict__.get("forward")
        if isinstance(own, types.MethodType) and own.__func__ is type(child).forward:
            del child.__dict__["forward"]  # the class's own, put there by copying an engine's
    return again


def _forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():  # shared with the real module
        parameter.grad = None
