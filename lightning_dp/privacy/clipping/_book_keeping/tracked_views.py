"""Other tensors in place of a module's trainable parameters, for the time of one call."""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_dp.privacy.clipping._book_keeping.backward_record import BackwardRecord
from lightning_dp.privacy.clipping._book_keeping.tracked_parameter import TrackedParameter


class Held(NamedTuple):
    """A trainable parameter where a module holds it."""

    holder: nn.Module
    attribute: str
    name: str


def held_by(module: nn.Module, names: Mapping[int, str]) -> list[Held]:
    """Trainable parameters that `module` or any module in it holds.

    Args:
        module: of the attached one.
        names: of the trainable parameters, by id.
    """
    return [
        Held(holder, attribute, names[id(parameter)])
        for holder in module.modules()
        for attribute, parameter in holder._parameters.items()
        if parameter is not None and id(parameter) in names
    ]


def read_by(module: nn.Module, names: Mapping[int, str], *, more: Collection[str] = ()) -> list[Held]:
    """Trainable parameters that this module's forward may read itself.

    Args:
        module: of the attached one.
        names: of the trainable parameters, by id.
        more: names of those that it was seen to read, though modules inside hold them.
    """
    if more:
        own = [one for one in held_by(module, names) if one.name in more]
        return own + [one for one in read_by(module, names) if one.name not in more]
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return []  # never called; their parent's forward reads them
    holders, others, waiting = [module], [], list(module.children())
    while waiting:
        child = waiting.pop()
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            holders.append(child)
            waiting.extend(child.children())
        else:
            others.append(child)

    def of(modules: list[nn.Module]) -> list[Held]:
        return [
            Held(holder, attribute, names[id(parameter)])
            for holder in modules
            for attribute, parameter in holder._parameters.items()
            if parameter is not None and id(parameter) in names
        ]

    own = of(holders)
    # A forward that uses parameters of its own may use a child's without calling the child
    # (MultiheadAttention its output projection's, timm's EVA its qkv's).
    return own + of(others) if own or isinstance(module, nn.MultiheadAttention) else []


def is_transposed_linear(module: nn.Module) -> bool:
    """GPT-2's Conv1D of transformers: a linear layer with (inputs, outputs) weights that folds its rows."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and type(module) is library.Conv1D


@contextmanager
def tracked_views(held: Sequence[Held], record: BackwardRecord) -> Iterator[None]:
    """tracked views in place of the parameters."""

    def view(name: str, now: Any) -> Any:
        return (
            now
            if now is None or isinstance(now, TrackedParameter)
            else TrackedParameter.parameter(now, record=record, name=name)
        )

    with _put(held, [view(one.name, one.holder._parameters[one.attribute]) for one in held]):
        yield


@contextmanager
def values_of(held: Sequence[Held], values: Mapping[str, Tensor]) -> Iterator[None]:
    """`values`, by parameter name, in place of the parameters."""
    with _put(held, [values[one.name] for one in held]):
        yield


@contextmanager
def _put(held: Sequence[Held], values: Sequence[Any]) -> Iterator[None]:
    before = [one.holder._parameters[one.attribute] for one in held]
    try:
        for one, value in zip(held, values, strict=True):
            one.holder._parameters[one.attribute] = value
        yield
    finally:
        for one, parameter in zip(held, before, strict=True):
            one.holder._parameters[one.attribute] = parameter
