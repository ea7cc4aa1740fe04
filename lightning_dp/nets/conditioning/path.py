"""Which part of a network is the condition's: θ_cond (arXiv 2602.22610, gradient diagnostics).

θ_cond is all through which a condition acts: what makes it (encoders), and what turns it into scale,
shift and gate. The second is found by its type; the first a network declares by a method
`condition_modules() -> list[nn.Module]`. All other parameters are θ_other.
"""

from collections.abc import Iterable

from torch import nn

from lightning_dp.nets.conditioning.modulation import Modulation


def modulation_modules(module: nn.Module) -> list[nn.Module]:
    """Layers from a condition to (γ, β, α): every `Modulation` inside `module`."""
    return [layer for layer in module.modules() if isinstance(layer, Modulation)]


def condition_modules(module: nn.Module) -> list[nn.Module]:
    """θ_cond as modules: the modulations and what parts of `module` declare in `condition_modules()`."""
    found = modulation_modules(module)
    for layer in module.modules():
        declare = getattr(layer, "condition_modules", None)
        if callable(declare):
            found += declare()
    return found


def condition_parameters(module: nn.Module) -> set[str]:
    """Names of θ_cond, as `module.named_parameters()` has them; empty where nothing is conditioned."""
    return _names_of(module, condition_modules(module))


def _names_of(module: nn.Module, parts: Iterable[nn.Module]) -> set[str]:
    wanted = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name for name, parameter in module.named_parameters() if id(parameter) in wanted}
