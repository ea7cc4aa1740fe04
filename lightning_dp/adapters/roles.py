"""Roles that parts of a network declare, so that adapters need not know its classes.

A module declares a role by a method without arguments that returns modules, itself or parts of it:
`modulation_modules` (from a condition to scale, shift and gate), `condition_modules` (what makes the
condition) and `output_modules` (last layers).
"""

from typing import Literal

from torch import nn

Role = Literal["modulation_modules", "condition_modules", "output_modules"]


def modules_of(module: nn.Module, role: Role) -> list[nn.Module]:
    """What all parts of `module`, itself included, declare for a role; [] where nothing does."""
    found: list[nn.Module] = []
    for layer in module.modules():
        declare = getattr(layer, role, None)
        if callable(declare):
            found += declare()
    return found
