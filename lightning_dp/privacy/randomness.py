"""Random numbers of private training: from the operating system, known to nobody, never saved.

A training step draws for its units in the order of the batch (timesteps, masks, dropout, window starts).
Remove one unit, and the others get other draws: all their gradients move, not one. That costs nothing only
while nobody knows the draws, since runs with and without the unit then differ by a permutation of numbers
that are as likely in any order. A seed that a run folder publishes makes every unit's draws known, and with
them the sensitivity of a step many times the clipping bound. So seeds stay in charge of initial weights, of
splits and of evaluation, and this file is in charge while private rows are read.

What is seen: that a global generator of torch, numpy or Python was seeded or set, by whatever name (`check`);
operators that draw from a seeded or an own torch generator, and put everything back (`Watch`); generators
kept where a step can reach them (`own_generators`). What is not seen: numpy's and Python's generators made
for one call only and thrown away, or global ones that are seeded and put back inside one hook. Made with a
constant they repeat themselves, which preflight meets as coupling where the step uses them for several units.
"""

import ctypes
import hashlib
import os
import random
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import get_worker_info

_WORDS = 624
_STATE_BYTES = 5056
_LONGEST_WAY = 500_000
"""Blocks of 624 numbers that may be drawn between two checks; following them takes some seconds."""
_BLOCKS_A_SECOND = 1_000_000  # more than a processor draws

_FIX = (
    "draw from torch's, numpy's or Python's global generators as they are, or make what is to be fixed in "
    "__init__ or setup"
)


@dataclass(frozen=True)
class _Twister:
    """State of a Mersenne twister: 624 words and the place of the next one, 0 … 624."""

    words: tuple[int, ...] | np.ndarray
    place: int

    def leads_to(self, later: "_Twister", *, seconds: float) -> bool:
        """Whether drawing from this state, and nothing else, arrives at `later` after so long a time."""
        same = self.words == later.words
        if same if isinstance(same, bool) else same.all():
            return self.place <= later.place
        goal = np.array(later.words, dtype=np.uint32)
        generator = np.random.MT19937()
        generator.state = {
            "bit_generator": "MT19937",
            "state": {"key": np.array(self.words, dtype=np.uint32), "pos": _WORDS},
        }
        # Reading the state through numpy costs ten times what a block does.
        words = np.ctypeslib.as_array((ctypes.c_uint32 * _WORDS).from_address(generator.ctypes.state_address))
        generator.random_raw(1, output=False)
        for _ in range(min(_LONGEST_WAY, 100 + int(_BLOCKS_A_SECOND * seconds))):
            if words[0] == goal[0] and np.array_equal(words, goal):
                return True
            generator.random_raw(_WORDS, output=False)
        return False


@final
class SecretRandomness:
    """Puts secret states into every global generator of this process, and watches that they stay.

    Like noise sources it is never pickled, copied or saved.
    """

    def __init__(self) -> None:
        self._public: tuple[Any, ...] | None = None
        self._paused: tuple[Any, ...] | None = None
        self._generators: dict[str, torch.Generator] = {}
        self._seeds: dict[str, int] = {}
        self._numpy = _numpy()
        self._python = _python()
        self._since = time.perf_counter()
        self._seen: set[bytes] = set()
        self._latest = b""
        self._moved = False  # whether something was drawn since then

    def __getstate__(self) -> dict[str, object]:
        raise TypeError("secret random states are never saved or copied: make a new SecretRandomness()")

    @property
    def active(self) -> bool:
        """Whether the secret states are in the generators."""
        return self._public is not None and self._paused is None

    def begin(self) -> None:
        """Keep what the generators hold, and fill them with the operating system's entropy."""
        if self._public is None:
            self._public = _states()
        self._paused = None
        self._generators = _generators()  # asking for devices takes long
        self._seeds = {name: _fill(generator) for name, generator in self._generators.items()}
        np.random.seed(np.frombuffer(os.urandom(4 * _WORDS), dtype=np.uint32))
        random.seed(os.urandom(4 * _WORDS))
        self._seen, self._latest = set(), b""
        self.advance()

    def advance(self) -> None:
        """From now on generators may not fall behind where they are."""
        self._numpy, self._python, self._since = _numpy(), _python(), time.perf_counter()
        digest = _digest()
        if digest in self._seen and (self._moved or digest != self._latest):
            raise RuntimeError(
                "torch's random state was set back to one of an earlier batch (torch.set_rng_state), so "
                f"units of both have the same draws, in the order of the batch: {_FIX}"
            )
        self._seen.add(digest)
        self._latest, self._moved = digest, False

    def check(self, place: str) -> None:
        """Raise RuntimeError if somebody seeded or set a generator since `advance`.

        Args:
            place: what has just run, for the message.
        """
        if not self.active:
            return
        seconds = time.perf_counter() - self._since
        self._moved |= _digest() != self._latest
        seeded = [f"torch's on {name}" for name, seed in self._known().items() if seed != self._seeds[name]]
        if not self._numpy.leads_to(_numpy(), seconds=seconds):
            seeded.append("numpy's")
        if not self._python.leads_to(_python(), seconds=seconds):
            seeded.append("Python's")
        if seeded:
            raise RuntimeError(
                f"{place} seeded or set random generators ({', '.join(seeded)}), so what units draw in the "
                "order of the batch would be known, and one unit's removal would change all others' draws: "
                f"{_FIX}"
            )

    def watching(self, place: str) -> AbstractContextManager[Any]:
        """A mode under which operators may draw from the secret generators only; nothing while paused.

        Args:
            place: what runs in it, for the message.
        """
        return Watch(self, place) if self.active else nullcontext()

    def draws_secretly(self, generator: torch.Generator | None) -> bool:
        """Whether an operator with this argument draws from the secret states."""
        if generator is not None and not any(generator is one for one in self._generators.values()):
            return False
        return all(seed == self._seeds[name] for name, seed in self._known().items())

    def pause(self) -> None:
        """Put the public states in, for what seeds are in charge of."""
        if self.active:
            assert self._public is not None
            self._paused = _states()
            _set(self._public)

    def resume(self) -> None:
        """Put the secret states in again, where they were."""
        if self._paused is not None:
            self._public = _states()
            _set(self._paused)
            self._paused = None

    def end(self) -> None:
        """Leave the generators as if no private fit had been; safe to call twice."""
        if self._public is not None:
            if self._paused is None:
                _set(self._public)
            self._public = self._paused = None

    def _known(self) -> dict[str, int]:
        return {name: one.initial_seed() for name, one in self._generators.items()}


class Watch(TorchDispatchMode):
    """Refuses operators that draw from other torch generators than the secret ones."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every operator takes a detour that costs more than ours

    def __init__(self, randomness: SecretRandomness, place: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._randomness = randomness
        self._place = place

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and not self._randomness.draws_secretly(
            kwargs.get("generator")
        ):
            raise RuntimeError(
                f"{self._place} draws by {func.overloadpacket.__name__} from a generator of its own or from "
                "a seeded one, so what units draw in the order of the batch would be known, and one unit's "
                f"removal would change all others' draws: {_FIX}"
            )
        return func(*args, **kwargs)


def _generators() -> dict[str, torch.Generator]:
    """Torch's global generators, by device; in a loader's worker that of the CPU, as it can't have others."""
    found = {"cpu": torch.default_generator}
    if get_worker_info() is not None:
        return found
    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        torch.cuda.init()  # else they would come later, with a seed that everybody knows
    found |= {f"cuda:{n}": generator for n, generator in enumerate(torch.cuda.default_generators)}
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps._get_default_mps_generator()
    return found


def _fill(generator: torch.Generator) -> int:
    """Fill a generator with entropy; its new `initial_seed`."""
    seed = int.from_bytes(os.urandom(8), "little") >> 1
    generator.manual_seed(seed)
    if generator.device.type == "cpu":
        # Of a seed the CPU's twister takes 32 bits, which can be tried one by one; its words take all.
        state = generator.get_state()
        if len(state) != _STATE_BYTES:
            raise RuntimeError(f"torch {torch.__version__} keeps its random state in {len(state)} bytes")
        state.numpy().view(np.uint64)[3 : 3 + _WORDS] = np.frombuffer(os.urandom(4 * _WORDS), dtype=np.uint32)
        generator.set_state(state)
    return seed


def _digest() -> bytes:
    return hashlib.blake2b(torch.get_rng_state().numpy().tobytes(), digest_size=16).digest()


def _numpy() -> _Twister:
    name, words, place, *_ = np.random.get_state()
    if name != "MT19937" or not isinstance(words, np.ndarray):
        raise RuntimeError(f"numpy's global generator is {name}; private training needs its MT19937")
    return _Twister(words, int(place))


def _python() -> _Twister:
    _, words, _ = random.getstate()
    return _Twister(words[:-1], words[-1])


def _states() -> tuple[Any, ...]:
    states = {name: generator.get_state() for name, generator in _generators().items()}
    return states, np.random.get_state(), random.getstate()


def _set(states: tuple[Any, ...]) -> None:
    of_torch, of_numpy, of_python = states
    for name, generator in _generators().items():
        if name in of_torch:
            generator.set_state(of_torch[name])
    np.random.set_state(of_numpy)
    random.setstate(of_python)
