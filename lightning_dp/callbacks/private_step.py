"""What stands around a module's `training_step` during a private fit, and takes the mean of its losses.

Lightning's own hooks come before or after the whole step. Here the generators are looked at right before it,
operators inside are watched, and per-row losses become the one number whose backward runs.
"""

import functools
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_dp.privacy.clipping.sites import UnknownUse
from lightning_dp.privacy.draws import generators_put_back
from lightning_dp.privacy.row_losses import mean_loss

_NAME = "training_step"


@final
class PrivateStep:
    """In the place of `module.training_step`, until `remove`.

    A copy of the module gets one that takes means and does nothing else, bound to the copy.

    Args:
        module: of the fit; compiled or not.
        around: a context for each call.
        inside: a context for the module's own step in it.
        check: told how many losses there are, where there is one a row; raises where they are too few.
        follow: may follow the batch before its step.
        learn: follows a batch that takes a branch which no followed batch took; the step then runs again.
    """

    def __init__(
        self,
        module: LightningModule,
        *,
        around: Callable[[], AbstractContextManager[Any]],
        inside: Callable[[], AbstractContextManager[None]],
        check: Callable[[int], None],
        follow: Callable[[Any], None],
        learn: Callable[[Any], None],
    ) -> None:
        self._module = module
        self._before = module.__dict__.get(_NAME)  # a compiled step lies there
        self._around, self._inside = around, inside
        self._check, self._follow, self._learn = check, follow, learn
        # Lightning looks up the signature, and whether the step is the user's own, under __wrapped__.
        functools.update_wrapper(self, getattr(module, _NAME), updated=())
        module.__dict__[_NAME] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        batch = args[0] if args else kwargs["batch"]
        self._follow(batch)
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        with self._around():
            try:
                output = self._own(*args, **kwargs)
            except UnknownUse:
                with generators_put_back(torch.device("cpu"), seed=None):
                    _put(states)
                    self._learn(batch)
                output = self._own(*args, **kwargs)
        given = output.get("losses") if isinstance(output, Mapping) else output
        if isinstance(given, Tensor) and given.ndim == 1:
            self._check(len(given))
        return _with_mean(output)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        with self._inside():
            return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _StepOfCopy(memo.get(id(self._module), self._module))

    def remove(self) -> None:
        """Leave the module as it was found; safe to call twice."""
        if self._module.__dict__.get(_NAME) is self:
            del self._module.__dict__[_NAME]
            if self._before is not None:
                self._module.__dict__[_NAME] = self._before


def _put(states: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


class _StepOfCopy:
    """The step of a copy, and of a copy of that one."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        functools.update_wrapper(self, getattr(type(module), _NAME), updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _with_mean(getattr(type(self._module), _NAME)(self._module, *args, **kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _StepOfCopy(memo.get(id(self._module), self._module))


def _with_mean(output: Any) -> Any:
    mean = mean_loss(output)
    return {**output, "loss": mean} if isinstance(output, Mapping) else mean
