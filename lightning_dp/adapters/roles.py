"""Roles that parts of a network declare, so that adapters need not know its classes.

A module declares a role by a method without arguments that returns modules, itself or parts of it:
`modulation_modules` (from a condition to scale, shift and gate), `condition_modules` (what makes the
condition, diffusion time included), `embedder_modules` (what embeds class or context alone),
`transformer_modules` (whole blocks) and `output_modules` (last layers). A module whose linear layer does
the work of several says so by `fused_layers()`.
"""

from collections.abc import Sequence

from torch import nn

from lightning_dp.protocols import Role, layers_fused_in, modules_in_role


def modules_of(module: nn.Module, role: Role) -> list[nn.Module]:
    """What all parts of `module`, itself included, declare for a role; [] where nothing does."""
    found: list[nn.Module] = []
    for layer in module.modules():
        found += modules_in_role(layer, role)
    return found


def parameters_of(module: nn.Module, role: Role, *, adapter: str, returns: str) -> list[nn.Parameter]:
    """Those of the modules that `module` declares for a role.

    Args:
        module: the network.
        role: which.
        adapter: who asks, for the message.
        returns: what the method returns, for the message.

    Raises:
        ValueError: nothing declares the role.
    """
    declared = modules_of(module, role)
    if not declared:
        raise ValueError(
            f"adapter {adapter}: no part of {type(module).__name__} has a method {role}(); give it one that "
            f"returns {returns}, or choose adapters.matching.Matching"
        )
    return [parameter for part in declared for parameter in part.parameters()]


def fused_layers(module: nn.Module) -> dict[str, Sequence[str]]:
    """By path of each linear layer that is several in one: their names, in the order of its output.

    Declared as `fused_layers() -> dict[str, Sequence[str]]` by whoever holds the layer, under its name
    there; each has an equal share of the rows.
    """
    found: dict[str, Sequence[str]] = {}
    for path, layer in module.named_modules():
        own = layers_fused_in(layer)
        found |= {f"{path}.{name}" if path else name: parts for name, parts in own.items()}
    return found
