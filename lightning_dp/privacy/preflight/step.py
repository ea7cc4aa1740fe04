"""One training step that can be tried as often as one likes, each time from the same state.

Every trial runs on a copy of the module, so nothing it does is left behind for the next: buffers, `.grad`,
attributes, random generators and warnings are as they were. Copies share the weights.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.draws import Draws
from lightning_dp.privacy.preflight.gradient import Gradient

_CLOSED = 1e-2


class StepFailed(Exception):
    """The step raised, or returned no loss to differentiate; says what."""


@final
class TrainingStep:
    """A module and how its loss comes about.

    Gates that start at zero (AdaLN-Zero, LoRA, zero-initialised heads) would hide what lies behind them, so
    parameters that are next to zero are set to small random values.

    Args:
        module: a copy made for this; is moved to `device`, raised from half precision to fp32, and changed.
        loss: from a copy of the module and a batch to the loss. May change the copy, nothing else.
        device: where to compute.
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
        self._loss = loss
        self._device = device
        self._keep = keep
        self.module = module.to(device)
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in self.module.parameters()):
            self.module.float()
        _forget_gradients(self.module)
        self._gates = _open_gates(self.module)
        self.foreign: set[str] = set()

    def copy(self, *, with_weights: bool = False) -> nn.Module:
        """The module as at first; its weights are shared unless `with_weights`."""
        return copied(self.module, keep=self._keep, with_weights=with_weights)

    def shut_gates(self) -> None:
        """Put back the parameters that were next to zero, for a module that can't do without."""
        with torch.no_grad():
            for parameter, value in self._gates:
                parameter.copy_(value)
        self._gates = []

    @contextmanager
    def running(self, draws: Draws) -> Iterator[None]:
        """Random numbers from `draws`, exact products, no advice from anybody."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with (
                warnings.catch_warnings(),
                torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
                torch.enable_grad(),
                torch.compiler.set_stance("force_eager"),
                draws.at_work(self._device),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            torch.set_float32_matmul_precision(precision)
            self.foreign |= draws.foreign

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, inside `running`.

        Raises:
            StepFailed: there is none.
        """
        try:
            loss = self._loss(module, batch)
        except Exception as error:
            raise StepFailed(_first_line(error)) from error
        if not isinstance(loss, Tensor):
            raise StepFailed(f"it returned {'no loss' if loss is None else type(loss).__name__}")
        if loss.numel() != 1:
            raise StepFailed(f"its loss has shape {tuple(loss.shape)} instead of one number")
        if not loss.requires_grad:
            raise StepFailed("its loss does not depend on any trainable parameter")
        return loss

    def gradient(self, batch: Any, *, draws: Draws, module: nn.Module | None = None) -> Gradient:
        """What plain autograd gives for a batch, on a fresh copy unless a module is given."""
        module = self.copy() if module is None else module
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        try:
            with self.running(draws):
                loss = self.loss(module, batch)
                try:
                    loss.backward()  # autograd.grad would refuse reentrant checkpointing
                except RuntimeError as error:
                    raise StepFailed(f"in backward: {_first_line(error)}") from error
            return Gradient({name: p.grad for name, p in named.items() if p.grad is not None})
        finally:
            _forget_gradients(module)

    def clipped(
        self,
        batch: Any,
        *,
        num_units: int,
        rows_per_unit: int,
        engine: ClippingEngine,
        function: ClippingFunction,
        max_grad_norm: float,
        draws: Draws,
    ) -> Gradient:
        """What `engine` gives for a batch: Σ clip(g) over its units.

        Raises:
            StepFailed: there is no loss.
            RuntimeError, ValueError: the engine refuses.
        """
        module = self.copy()
        engine.attach(module, function=function, max_grad_norm=max_grad_norm)
        try:
            with self.running(draws):
                engine.expect(unit_weights=torch.ones(num_units), rows_per_unit=rows_per_unit)
                self.loss(module, batch).backward()
                engine.collect()
                return Gradient(engine.take())
        finally:
            engine.detach()
            _forget_gradients(module)


def copied(module: nn.Module, *, keep: Sequence[Any] = (), with_weights: bool = False) -> nn.Module:
    """A copy of `module` that shares what is in `keep`, and its weights unless `with_weights`."""
    shared = () if with_weights else tuple(module.parameters())
    known: dict[int, Any] = {id(one): one for one in (*keep, *shared)}
    for child in module.modules():
        # A module has nine empty tables of hooks, which take longer to copy than all the rest.
        known.update({id(v): OrderedDict() for v in vars(child).values() if type(v) is OrderedDict and not v})
    return copy.deepcopy(module, known)


def _forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():  # shared by all copies
        parameter.grad = None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _open_gates(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Parameters that were changed, with what they were."""
    changed: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not (parameter.requires_grad and parameter.is_floating_point() and parameter.numel()):
                continue
            usual = (parameter.numel() / len(parameter)) ** -0.5 if parameter.ndim > 1 else 1.0
            if float(parameter.square().mean()) < (_CLOSED * usual) ** 2:
                changed.append((parameter, parameter.clone()))
                noise = torch.randn(parameter.shape, generator=generator) * (0.3 * usual)
                parameter.add_(noise.to(parameter))
    return changed
