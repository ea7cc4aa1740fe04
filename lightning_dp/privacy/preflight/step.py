"""One training step that can be tried as often as one likes, each time from the same state.

Every trial runs on a copy of the module, so nothing it does is left behind for the next: buffers, `.grad`,
attributes, random generators and warnings are as they were. Copies share the weights.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_dp.privacy.clipping.engine import ClippingEngine
from lightning_dp.privacy.clipping.following import Followed
from lightning_dp.privacy.clipping.functions import ClippingFunction
from lightning_dp.privacy.clipping.sites import Sites
from lightning_dp.privacy.clipping.trees import map_tensors
from lightning_dp.privacy.draws import Draws, generators_put_back
from lightning_dp.privacy.fp32_precision import full_precision
from lightning_dp.privacy.preflight.copies import copied
from lightning_dp.privacy.preflight.gradient import Gradient
from lightning_dp.privacy.preflight.made_up import Uncollated

_CLOSED = 1e-2
_TAKES = 2
"""How often a step is followed at each moment of training."""
_OPENINGS = (0.3, 0.01, 1e-3)
"""How far gates are opened, in shares of usual weights; the later ones for modules that a first breaks."""


class StepFailed(Exception):
    """The step raised, or returned no loss to differentiate; says what."""


class HookFailed(Exception):
    """A hook of a training batch raised; says what.

    Args:
        error: what it raised.
        place: which hook.
        fix: what to do about it.
    """

    def __init__(self, error: Exception, *, place: str, fix: str) -> None:
        super().__init__(_first_line(error))
        self.place, self.fix = place, fix


@final
@dataclass(frozen=True, kw_only=True)
class Moment:
    """A time in training.

    Attributes:
        name: for messages, such as "at global_step 1".
        lived: makes the module believe that it is there.
    """

    name: str
    lived: Callable[[], AbstractContextManager[Any]]


START = Moment(name="at the start", lived=nullcontext)


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
        moments: when to try, the start of training first.
        train: a whole batch, with all hooks, on a copy of its own; returns what a checkpoint would hold
            besides weights and buffers, by name. None is loss and backward.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Callable[[nn.Module, Any], Any],
        device: torch.device,
        keep: tuple[Any, ...] = (),
        moments: Sequence[Moment] = (START,),
        train: Callable[[nn.Module, Any], dict[str, object]] | None = None,
    ) -> None:
        self._loss = loss
        self._train = train
        self._keep = keep
        self.device = device
        self.moments = tuple(moments)
        self.moment = self.moments[0]
        self.module = module.to(device)
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in self.module.parameters()):
            self.module.float()
        _forget_gradients(self.module)
        self._gates = _gates(self.module)
        self._openings = list(_OPENINGS)
        self.open_gates()
        self.foreign: set[str] = set()

    def copy(self, *, with_weights: bool = False) -> nn.Module:
        """The module as at first; its weights are shared unless `with_weights`."""
        return copied(self.module, keep=self._keep, with_weights=with_weights)

    def open_gates(self) -> bool:
        """Open them less than before, at last not at all; False where that was so already."""
        if not self._gates:
            return False
        opening = self._openings.pop(0) if self._openings else 0.0
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter, value in self._gates:
                noise = torch.randn(parameter.shape, generator=generator) * (opening * _usual(parameter))
                parameter.copy_(value + noise.to(value))
        if not opening:
            self._gates = []
        return True

    def on_cpu(self) -> "TrainingStep":
        """The same step where a wrong index raises; on a GPU it ends the process."""
        if self.device.type == "cpu":
            return self
        return TrainingStep(
            self.copy(with_weights=True),
            loss=self._loss,
            device=torch.device("cpu"),
            keep=self._keep,
            moments=self.moments,
            train=self._train,
        )

    def in_double(self) -> "TrainingStep":
        """The same step, weights and all floating-point numbers of a batch in fp64."""
        return TrainingStep(
            self.copy(with_weights=True).double(),
            loss=lambda module, batch: self._loss(module, map_tensors(_doubled, batch)),
            device=self.device,
            keep=self._keep,
            moments=self.moments,
        )

    @contextmanager
    def at(self, moment: Moment) -> Iterator[None]:
        """Steps inside are taken at another time."""
        before, self.moment = self.moment, moment
        try:
            yield
        finally:
            self.moment = before

    @contextmanager
    def running(self, draws: Draws) -> Iterator[None]:
        """Random numbers from `draws`, exact products, no advice from anybody."""
        try:
            with (
                warnings.catch_warnings(),
                full_precision(),
                torch.enable_grad(),
                torch.compiler.set_stance("force_eager"),
                self.moment.lived(),
                draws.at_work(self.device),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            self.foreign |= draws.foreign

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, inside `running`.

        Raises:
            StepFailed: there is none.
        """
        try:
            loss = self._loss(module, collated(batch))
        except StepFailed:
            raise
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

    def train(self, batch: Any, *, draws: Draws, module: nn.Module) -> dict[str, object]:
        """A whole batch with all hooks, which may change `module`; see the argument of that name.

        Raises:
            StepFailed: there is no loss.
            HookFailed: a hook raised.
        """
        if self._train is None:
            self.gradient(batch, draws=draws, module=module)
            return {"state_dict": module.state_dict()}
        with self.running(draws):
            return self._train(module, collated(batch))

    def value(self, batch: Any, *, draws: Draws) -> float:
        """The loss of a batch on a fresh copy, NaN where there is none; a third of a gradient's cost."""
        try:
            with self.running(draws):
                return float(self.loss(self.copy(), batch))
        except StepFailed:
            return math.nan

    def follow(self, batch: Any, *, mixing: bool = False) -> Sites:
        """Where uses of parameters have units, from a batch that is to be followed (`BatchLayout.first`).

        With `mixing` as far as that is known although units are mixed.

        Raises:
            UnitsMixed: units are mixed where no module could be run unit by unit.
            Exception: whatever the step raises on such a batch.
        """
        module = self.copy(with_weights=True).cpu()
        followed = Followed(module)
        try:
            with (
                warnings.catch_warnings(),
                torch.compiler.set_stance("force_eager"),
                generators_put_back(torch.device("cpu")),
                self.moment.lived(),
            ):
                warnings.simplefilter("ignore")
                for seed in range(_TAKES):  # branches at random
                    try:
                        followed.step(lambda: self._loss(module, batch), mixing=mixing, seed=seed)
                    except Exception:
                        if not mixing:
                            raise
                        followed.sites.settle()
        finally:
            followed.close()
        return followed.sites

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
                with engine.stepping():
                    loss = self.loss(module, batch)
                loss.backward()
                engine.collect()
                return Gradient(engine.take())
        finally:
            engine.detach()
            _forget_gradients(module)


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def collated(batch: Any) -> Any:
    """The batch itself; items go through the loader's collation first, each with the same draws.

    Raises:
        StepFailed: the collation failed.
    """
    if not isinstance(batch, Uncollated):
        return batch
    try:
        with Draws.same_for_all():
            return batch.collated()
    except Exception as error:
        raise StepFailed(f"in the loader's collate_fn: {_first_line(error)}") from error


def _forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():  # shared by all copies
        parameter.grad = None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _usual(parameter: Tensor) -> float:
    """The root mean square of a weight at the start of training."""
    return (parameter.numel() / len(parameter)) ** -0.5 if parameter.ndim > 1 else 1.0


def _gates(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Parameters that are next to zero, with their values; frozen ones hide what lies behind them as well."""
    parameters = [p for p in module.parameters() if p.is_floating_point() and p.numel()]
    with torch.no_grad():
        return [(p, p.clone()) for p in parameters if float(p.square().mean()) < (_CLOSED * _usual(p)) ** 2]
