"""The random draws of a real step, noted while it runs and handed out again to some of its units.

`Recording` changes nothing: it sees every random operator below autograd and keeps what it returned.
`HandedOut` gives the same draws to a smaller batch, operator by operator. The dimension in which both shapes
differ by the ratio of units is that of units; a draw of equal shape is one for all. As in preflight's
`RowAlignedRandomness`, each operator takes a single number from torch's global generator, so activation
checkpointing, which puts the generator back and runs a layer again in backward, is handed the same draw.
"""

import random
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dp.privacy.draws import Draws

_HALF = (torch.bfloat16, torch.float16)
_SWITCHES = {"dropout_p": 0.0, "p": 0.0, "dropout": 0.0, "training": False, "train": False}
"""Arguments, and the value with which a fused operator draws nothing."""


@final
class Recording(TorchDispatchMode):
    """Notes what random operators return; to be entered for one forward pass.

    Attributes:
        drawn: operator and result, in order.
        can_be_handed_out: False where something was drawn that nobody sees, as in fused attention.
        half: whether something was computed in half precision.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every operator takes a detour that costs more than ours

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: list[tuple[str, Tensor]] = []
        self.can_be_handed_out = True
        self.half = False

    def __enter__(self) -> Any:
        self._before = _position()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if _position() != self._before:
            self.can_be_handed_out = False  # numpy or Python's random drew

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            if not draws_nothing(func, args, kwargs):
                self._note(func, result)
        elif isinstance(result, Tensor) and result.dtype in _HALF:
            self.half = True
        return result

    def _note(self, func: Any, result: Any) -> None:
        # Of dropout the mask: what is left of the input depends on the input.
        value = result[1] if _is_dropout(func) else result
        if isinstance(value, Tensor) and not _is_fused(func):
            self.drawn.append((str(func), value.detach().to("cpu", copy=True)))
        else:
            self.can_be_handed_out = False


@final
class HandedOut(Draws):
    """Gives some units of a batch the draws that they had in it.

    Attributes:
        failed: whether a draw could not be lined up; the run that asked for it has raised.
        certain: whether every draw was of rows, units first. Draws that all units share, or that have units
            in another dimension, may have been used in a way that a smaller batch does not repeat.
    """

    def __init__(
        self, recording: Recording, units: Sequence[int], *, num_units: int, rows: frozenset[int]
    ) -> None:
        """Hand out to `units` of `num_units`; `rows` are the usual numbers of rows a unit."""
        super().__init__()
        self._drawn = recording.drawn
        self._units, self._num_units, self._rows = list(units), num_units, rows
        self._places: dict[float, int] = {}
        self.failed = not recording.can_be_handed_out
        self.certain = True

    def draw(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if draws_nothing(function, args, kwargs):
            return function(*args, **kwargs)
        ticket = float(torch.rand((), dtype=torch.float64))
        place = self._places.setdefault(ticket, len(self._places))
        state = torch.get_rng_state()
        result = function(*args, **kwargs)  # shape, dtype and device as they should be
        torch.set_rng_state(state)
        asked = result[1] if _is_dropout(function) else result
        if place >= len(self._drawn) or self._drawn[place][0] != str(function) or _is_fused(function):
            raise self._failure(function)
        own = self._own(self._drawn[place][1], asked.shape)
        if own is None:
            raise self._failure(function)
        asked.copy_(own)
        if _is_dropout(function):
            given, p = args[0], args[1]
            return given * asked * (1 / (1 - p) if p < 1 else 0.0), asked
        return result

    def _failure(self, function: Any) -> RuntimeError:
        self.failed = True
        return RuntimeError(f"a draw of {function} can't be lined up")

    def _own(self, drawn: Tensor, shape: torch.Size) -> Tensor | None:
        """The units' part of a draw, of `shape`; None where shapes don't tell which."""
        everybody = self._units == list(range(self._num_units))
        if drawn.shape == shape:
            self.certain &= everybody
            return drawn
        if drawn.ndim != len(shape):
            return None
        apart = [d for d, (whole, part) in enumerate(zip(drawn.shape, shape, strict=True)) if whole != part]
        step, rest = divmod(drawn.shape[apart[0]], self._num_units)
        if len(apart) != 1 or rest or step * len(self._units) != shape[apart[0]]:
            return None
        self.certain &= apart == [0] and step in self._rows
        index = [unit * step + row for unit in self._units for row in range(step)]
        return drawn.index_select(apart[0], torch.tensor(index))


def draws_nothing(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a fused operator with dropout in it is called without."""
    names = [argument.name for argument in function._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if not (_is_fused(function) or _is_dropout(function)):
        return False
    switches = [name for name in _SWITCHES if name in names]
    return any(given.get(name, _SWITCHES[name]) == _SWITCHES[name] for name in switches)


def _is_dropout(function: Any) -> bool:
    result: bool = function.overloadpacket.__name__ == "native_dropout"
    return result


def _is_fused(function: Any) -> bool:
    name = function.overloadpacket.__name__
    return "attention" in name or "rrelu" in name or "rnn" in name or "lstm" in name or "gru" in name


def _position() -> tuple[Any, ...]:
    _, keys, place, *_ = np.random.get_state()
    return keys.tobytes() if isinstance(keys, np.ndarray) else keys, place, random.getstate()
