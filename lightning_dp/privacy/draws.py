"""Random numbers of a step that is tried several times: the same ones again, and no trace of them.

`RowAlignedRandomness` gives every row of a batch the same draws, so that a unit gets alone what it gets in a
batch of any size. Each random operator takes a single number from torch's global generator, whatever the
shape it fills: activation checkpointing, which puts the generator's state back, repeats it.
`RecordedRandomness` draws as usual and notes what was drawn.

Scope: torch's operators. Numpy's and Python's global generators are seeded and their use is noticed.
"""

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def generators_put_back(device: torch.device, *, seed: int | None = 0) -> Iterator[None]:
    """Global generators of torch, numpy and Python: seeded inside (unless with None), afterwards as found."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if seed is not None:
                _seed(device, seed)
                np.random.seed(seed)
                random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _seed(device: torch.device, seed: int) -> None:
    """Seed the CPU's generator and that of one device, whose states somebody keeps.

    `torch.manual_seed` would reach those of all other devices, which in a private fit hold secret seeds.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()  # where nothing was computed yet, there are no generators
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


class Draws(TorchDispatchMode):
    """Sees every random operator below autograd.

    Attributes:
        device: whose generator is seeded beside the CPU's.
        log: operators and shapes so far.
        foreign: what drew random numbers that could not be seen or lined up.
        own: operators that were given a generator.
        states: of the generator before each draw, where `watched`.
        ends: states of numpy's and of Python's generator afterwards.
    """

    _now: ClassVar[list["Draws"]] = []

    @classmethod
    @contextmanager
    def same_for_all(cls) -> Iterator[None]:
        """Inside, items that draw one by one draw the same; afterwards it is as if nothing had been drawn."""
        if not cls._now:
            yield
            return
        draws = cls._now[-1]
        draws.repeating = True
        try:
            yield
        finally:
            draws.repeating = False
            _seed(draws.device, draws.seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every operator takes a detour that costs more than ours

    def __init__(self, *, seed: int = 0, watched: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.watched = watched
        self.repeating = False
        self.device = torch.device("cpu")
        self.log: list[tuple[str, tuple[int, ...]]] = []
        self.foreign: set[str] = set()
        self.own: set[str] = set()
        self.states: list[bytes] = []
        self.ends: tuple[Any, Any] = ((), ())

    @abstractmethod
    def draw(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the random operator returns."""

    def other(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator returns that draws nothing."""
        return function(*args, **kwargs)

    @final
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return self.other(func, args, kwargs)
        if kwargs.get("generator") is not None:
            self.own.add(str(func))
            kwargs = {
                **kwargs,
                "generator": None,
            }  # one of the user's own would move on, and differ next time
        if self.repeating:
            _seed(self.device, self.seed)
        before = _states() if self.watched else {}
        result = self.draw(func, args, kwargs)
        first = result[0] if isinstance(result, tuple) else result
        if self.watched:
            self.states.append(before.get(str(first.device), before["cpu"]))
        self.log.append((str(func), tuple(first.shape)))
        return result

    @contextmanager
    def at_work(self, device: torch.device) -> Iterator[None]:
        """Seed everything, draw inside, and leave all generators as they were found."""
        self.device = device
        # Backward on a GPU has a thread of its own, in which no mode is set.
        with generators_put_back(device, seed=self.seed), torch.autograd.set_multithreading_enabled(False):
            before = _position()
            Draws._now.append(self)
            try:
                with self:
                    yield
            finally:
                Draws._now.pop()
            after = _position()
            self.ends = after[0], after[1]
            if after != before:
                self.foreign.add("numpy or Python's random")


@final
class RecordedRandomness(Draws):
    """Draws as usual."""

    def draw(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)


@final
class RowAlignedRandomness(Draws):
    """Every row gets the same draws: filled tensors vary from their third dimension on only."""

    def other(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "attention" in function._schema.name:  # its backward draws the dropout again
            return _without_dropout(function, args, kwargs)
        return function(*args, **kwargs)

    def draw(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = function.overloadpacket.__name__
        if name in _WITHOUT_DROPOUT or "attention" in name:
            return _without_dropout(function, args, kwargs)
        one = 0.2 + 0.6 * float(torch.rand((), dtype=torch.float64))  # never near the end of a range
        if name in _OF_INPUTS:
            return _OF_INPUTS[name](one, *args)
        fill = _FILLS.get(name)
        if fill is None:
            self.foreign.add(str(function))
            return function(*args, **kwargs)
        state = torch.get_rng_state()
        result = function(*args, **kwargs)  # shape, dtype and device as they should be
        torch.set_rng_state(state)
        given = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False))
        return fill(result, one, {**given, **kwargs})


def _position() -> tuple[Any, Any]:
    """States of numpy's and of Python's generator."""
    _, keys, place, *_ = np.random.get_state()
    return (keys.tobytes() if isinstance(keys, np.ndarray) else keys, place), random.getstate()


def _states() -> dict[str, bytes]:
    """By device, the state of torch's generator."""
    found = {"cpu": bytes(torch.get_rng_state().numpy())}
    if torch.cuda.is_available():
        device = f"cuda:{torch.cuda.current_device()}"
        found[device] = bytes(torch.cuda.get_rng_state(device).numpy())
    return found


def _ramp(result: Tensor, one: float) -> Tensor:
    """Numbers in (0, 1) of the result's shape: `one` first, others along dimensions from the third on."""
    inner = result.shape[2:]
    steps = torch.arange(math.prod(inner), dtype=torch.float64, device=result.device).view(inner)
    return ((one + steps * 0.618034) % 1.0).clamp(0.05, 0.95).expand(result.shape)


def _normal(result: Tensor, one: float, given: dict[str, Any]) -> Tensor:
    mean, std = given.get("mean", 0.0), given.get("std", 1.0)
    uniform = _ramp(result, one)
    # Away from 0 on either side: noise of 0 would hide what it is multiplied with.
    standard = torch.where(uniform < 0.5, uniform - 1.2, uniform + 0.2)
    return result.copy_(mean + std * standard)


def _uniform(result: Tensor, one: float, given: dict[str, Any]) -> Tensor:
    low, high = given.get("from", 0.0), given.get("to", 1.0)
    return result.copy_(low + (high - low) * _ramp(result, one))


def _exponential(result: Tensor, one: float, given: dict[str, Any]) -> Tensor:
    return result.copy_(-_ramp(result, one).log() / given.get("lambd", 1.0))


def _whole(result: Tensor, one: float, given: dict[str, Any]) -> Tensor:
    """randint and random_: `low` … `high` − 1."""
    low = given.get("low", given.get("from")) or 0
    high = given.get("high", given.get("to"))
    if high is None:  # random_() without a range
        high = low + 2**16
    return result.copy_((low + _ramp(result, one) * (high - low)).floor())


def _coin(result: Tensor, one: float, given: dict[str, Any]) -> Tensor:
    """The likelier side, which leaves dropout without effect."""
    p = given.get("p", 0.5)
    return result.copy_(p >= 0.5) if isinstance(p, Tensor) else result.fill_(float(p >= 0.5))


def _permutation(result: Tensor, one: float, given: dict[str, Any]) -> Tensor:
    """Each to the next place: nobody stays where they were, but one alone does."""
    return result.copy_(torch.arange(len(result), device=result.device).roll(1))


_FILLS: dict[str, Callable[[Tensor, float, dict[str, Any]], Tensor]] = {
    "randn": _normal,
    "randn_like": _normal,
    "normal": _normal,
    "normal_": _normal,
    "rand": _uniform,
    "rand_like": _uniform,
    "uniform_": _uniform,
    "exponential_": _exponential,
    "randint": _whole,
    "randint_like": _whole,
    "random_": _whole,
    "bernoulli_": _coin,
    "randperm": _permutation,
}


def _multinomial(one: float, weights: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    order = weights.argsort(dim=-1, descending=True, stable=True)
    if replacement:
        return order[..., :1].expand(*order.shape[:-1], num_samples).contiguous()
    return order[..., :num_samples].contiguous()


def _bernoulli(one: float, probabilities: Tensor, p: float | None = None) -> Tensor:
    return (probabilities if p is None else torch.full_like(probabilities, p)).ge(0.5).to(probabilities.dtype)


# Operators that draw one number for each number they are given.
_OF_INPUTS: dict[str, Callable[..., Tensor]] = {
    "bernoulli": _bernoulli,
    "poisson": lambda one, rate: rate.round(),
    "binomial": lambda one, count, p: (count * p).round(),
    "_standard_gamma": lambda one, alpha: alpha + 0.1 * one,
    "multinomial": _multinomial,
}

_WITHOUT_DROPOUT = frozenset({"native_dropout", "rrelu_with_noise"})
_OFF: dict[str, float | bool] = {"dropout_p": 0.0, "p": 0.0, "training": False}


def _without_dropout(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = [argument.name for argument in function._schema.arguments]
    changed = [_OFF.get(name, value) for name, value in zip(names, args, strict=False)]
    return function(*changed, **{name: _OFF.get(name, value) for name, value in kwargs.items()})
