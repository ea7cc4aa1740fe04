"""Which part of a network is the condition's: θ_cond (arXiv 2602.22610, gradient diagnostics).

θ_cond is all through which a condition (diffusion time, context, class) acts before it meets x_t: the layers
whose input depends on the condition and not on x_t. Each of these is on one `ConditionPath`, which the
network declares by `condition_paths()`; a `Modulation` is found by its type. All other parameters are
θ_other, the last linear layer included, for it sees x_t.
"""

from enum import StrEnum
from typing import Protocol, runtime_checkable

from torch import nn

from lightning_dp.nets.conditioning.modulation import Modulation


class ConditionPath(StrEnum):
    """A way that a condition takes into a network."""

    ENCODER = "encoder"
    """What makes the condition vector of diffusion time, context or class."""
    MODULATION = "modulation"
    """From the condition vector to scale, shift and gate of a block."""
    FINAL = "final"
    """The same of the final layer."""
    TOKENS = "tokens"
    """Added to tokens, each its own part: past the condition vector and all that bounds it."""
    ATTENTION = "attention"
    """Keys and values of cross-attention."""
    SKIP = "skip"
    """From the context to the output, past all blocks."""
    GAINS = "gains"
    """What the skip is multiplied with."""


@runtime_checkable
class DeclaresPaths(Protocol):
    """A module that says by which ways a condition acts in it."""

    def condition_paths(self) -> dict[ConditionPath, list[nn.Module]]:
        """Modules by their path, itself or parts of it; what an outer module says of a part counts."""


@runtime_checkable
class _DeclaresEncoders(Protocol):
    def condition_modules(self) -> list[nn.Module]: ...


def modulation_modules(module: nn.Module) -> list[nn.Module]:
    """Layers from a condition to (γ, β, α): every `Modulation` inside `module`."""
    return [layer for layer in module.modules() if isinstance(layer, Modulation)]


def condition_paths(module: nn.Module) -> dict[ConditionPath, set[str]]:
    """Names of the parameters on each path, as `module.named_parameters()` has them.

    Returns:
        The paths that have parameters; no parameter is on two. Empty where nothing is conditioned.

    Raises:
        ValueError: a module declares one parameter for two paths.
    """
    path_of: dict[int, ConditionPath] = {}
    for layer in module.modules():  # the outer ones first
        own: dict[int, ConditionPath] = {}
        for path, parts in _declared(layer).items():
            for parameter in (parameter for part in parts for parameter in part.parameters()):
                if own.setdefault(id(parameter), path) is not path:
                    raise ValueError(
                        f"{type(layer).__name__}.condition_paths() has a parameter of shape "
                        f"{tuple(parameter.shape)} on the paths {own[id(parameter)]} and {path}, but shares "
                        "of paths add up only if each parameter is on one: leave it out of the other."
                    )
        path_of = {**own, **path_of}
    found: dict[ConditionPath, set[str]] = {}
    for name, parameter in module.named_parameters():
        if id(parameter) in path_of:
            found.setdefault(path_of[id(parameter)], set()).add(name)
    return found


def condition_parameters(module: nn.Module) -> set[str]:
    """Names of θ_cond, as `module.named_parameters()` has them; empty where nothing is conditioned."""
    return set().union(*condition_paths(module).values())


def _declared(layer: nn.Module) -> dict[ConditionPath, list[nn.Module]]:
    if isinstance(layer, Modulation):
        return {ConditionPath.MODULATION: [layer]}
    if isinstance(layer, DeclaresPaths):
        return layer.condition_paths()
    # A network that says what makes its condition and nothing else has no other way but modulations.
    return {ConditionPath.ENCODER: layer.condition_modules()} if isinstance(layer, _DeclaresEncoders) else {}
