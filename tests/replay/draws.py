"""Randomness that belongs to units: the same unit has the same coins and the same draws on D and on D′.

A training step uses two kinds of randomness beside the mechanism's noise: who is in the batch, and what a
unit draws for itself (diffusion times, noise, dropout, masks, window starts, augmentation). Both are
independent of the data and of the other units, so for each run on D there is an equally likely run on D′
in which every unit that both share draws the same numbers. The harness compares those two; a privacy
proof does as well, when it fixes everything but the noise.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATORS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("bernoulli", "bernoulli_", "uniform_", "normal", "normal_", "random_", "exponential_"),
    *("native_dropout", "multinomial"),
}


def number(*key: object) -> int:
    """64 bits that depend on the key alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def coin(seed: int, *, draw: int, key: int) -> float:
    """Uniform in [0, 1): whether unit `key` is in logical batch `draw`."""
    return number("coin", seed, draw, key) / 2**64


class KeyedCoins:
    """Takes the place of the sampler's generator; the sampler itself stays.

    Args:
        seed: of this harness, which is public.
        keys: one per unit that the sampler draws for.
        first_draw: logical batches that earlier processes of the run have drawn.
    """

    def __init__(self, seed: int, keys: Sequence[int], *, first_draw: int = 0) -> None:
        self._seed = seed
        self._keys = keys
        self.draws = first_draw

    def random(self, size: int) -> np.ndarray:
        assert size == len(self._keys), "the sampler asks for one coin per unit"
        coins = [coin(self._seed, draw=self.draws, key=key) for key in self._keys]
        self.draws += 1
        return np.array(coins)


class KeyedDraws(TorchDispatchMode):
    """Draws from torch's global generator, made row by row from the key of the unit that owns the row.

    A draw belongs to units where its first dimension is a whole number of rows for each unit of the batch.
    All others while a batch is read or trained on (one number for all of it) come from a stream of the step.
    Draws at other times, from a generator of their own and by numpy are left alone: what they change shows
    as a difference.

    Args:
        seed: of this harness, which is public.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._where: tuple = ()
        self._keys: Sequence[int] = ()
        self._calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every operator takes a detour

    def begin(self, *where: object, keys: Sequence[int]) -> None:
        """From now on draws are for these units, at this place of the run."""
        self._where, self._keys, self._calls = where, keys, 0
        self.__enter__()

    def end(self) -> None:
        """From now on draws are left alone."""
        if self._keys:
            self._keys = ()
            self.__exit__(None, None, None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        followed = any(issubclass(kind, DTensor) for kind in types)  # to see where units are, not to train
        if followed or name not in _OPERATORS or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        call = self._calls
        self._calls += 1
        rows = _rows(args)
        if rows == 0 or rows % len(self._keys):
            with _seeded(number(self._seed, *self._where, call)):
                return func(*args, **kwargs)
        each = rows // len(self._keys)
        parts = []
        for place, key in enumerate(self._keys):
            own = [_part(value, rows, slice(place * each, (place + 1) * each)) for value in args]
            with _seeded(number(self._seed, *self._where, call, key)):
                parts.append(func(*own, **kwargs))
        if func._schema.is_mutable:
            return args[0].copy_(torch.cat(parts))
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return torch.cat(parts)


def _rows(args: Sequence[Any]) -> int:
    """The first dimension of what an operator draws; 0 where it has none."""
    for value in args:
        if isinstance(value, Tensor):
            return value.shape[0] if value.ndim else 0
        if isinstance(value, list | tuple):
            return int(value[0]) if len(value) else 0
    return 0


def _part(value: Any, rows: int, part: slice) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
        return value[part].clone()
    if isinstance(value, list | tuple) and len(value) and value[0] == rows:
        return [part.stop - part.start, *value[1:]]
    return value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = torch.get_rng_state()
    ours = torch.Generator().manual_seed(seed >> 1).get_state()
    ours[:8] = state[:8]  # the seed that a private fit looks at; what is drawn does not depend on it
    torch.set_rng_state(ours)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def included(seed: int, *, keys: Sequence[int], draw: int, rate: float) -> set[int]:
    """Who belongs into logical batch `draw` at sampling rate `rate`."""
    return {key for key in keys if coin(seed, draw=draw, key=key) < rate}


def seed_with(wanted: Callable[[int], bool], *, first: int) -> int:
    """The first seed from `first` on that gives a run worth looking at."""
    return next(seed for seed in range(first, first + 10_000) if wanted(seed))
