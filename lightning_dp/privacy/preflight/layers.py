"""What the layers of a module say before anything is run."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lightning_dp.privacy.preflight.finding import Finding


def find_in_layers(module: nn.Module) -> list[Finding]:
    """BatchNorm in any dimension, InstanceNorm with running statistics, layers that nothing can clip."""
    found = []
    norms: dict[str, list[str]] = {}
    for path, layer in module.named_modules():
        name = type(layer).__name__
        if isinstance(layer, _NormBase) and (layer.track_running_stats or "BatchNorm" in name):
            norms.setdefault(name, []).append(path)
        elif isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():  # type: ignore[misc]
            found.append(
                Finding(
                    code="clipping",
                    place=f"'{path}'",
                    problem=f"is a {name}: nothing can clip parameters that do not exist yet",
                    fix="give it its input size",
                    can_be_accepted=False,
                )
            )
        elif isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            found.append(
                Finding(
                    code="remembers",
                    place=f"'{path}'",
                    problem="has max_norm: each batch rewrites the rows of the table that its units look up",
                    fix="unset max_norm, and normalise what was looked up",
                )
            )
        elif problem_and_fix := _unclippable(layer):
            found.append(
                Finding(
                    code="clipping",
                    place=f"'{path}'",
                    problem=problem_and_fix[0],
                    fix=problem_and_fix[1],
                    can_be_accepted=False,
                )
            )
    found = [*(_batch_norm(name, paths) for name, paths in norms.items()), *found]
    if not any(parameter.requires_grad for parameter in module.parameters()):
        found.append(
            Finding(
                code="nothing-trains",
                place=type(module).__name__,
                problem="has no trainable parameter: nothing would be trained",
                fix="set requires_grad=True on what should be",
                can_be_accepted=False,
            )
        )
    return found


def _batch_norm(name: str, paths: list[str]) -> Finding:
    """One finding for all layers of a kind."""
    more = f" and {len(paths) - 1} more, to '{paths[-1]}'," if len(paths) > 1 else ""
    return Finding(
        code="batch-norm",
        place=f"'{paths[0]}'{more}",
        problem=(
            f"{'is a' if not more else 'are'} {name}: it mixes the examples of a batch or keeps running "
            "statistics of private data, so no clipping makes it private"
        ),
        fix=(
            "replace it by GroupNorm or LayerNorm; opacus.validators.ModuleValidator.fix(net) does that in "
            "the whole of a net"
        ),
    )


def _unclippable(layer: nn.Module) -> tuple[str, str] | None:
    """A problem and its fix, of what no engine can take apart."""
    trains = any(parameter.requires_grad for parameter in layer.parameters())
    if isinstance(layer, torch.jit.ScriptModule) and trains:
        return "is TorchScript, whose layers nobody can see", "pass the module as it was before torch.jit"
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return (
                "has torch's old weight_norm, whose weight is no parameter",
                "use torch.nn.utils.parametrizations.weight_norm",
            )
        if isinstance(hook, SpectralNorm):
            return _SPECTRAL
    return None


_SPECTRAL = (
    "is under the old torch.nn.utils.spectral_norm, which makes its weight in a hook before the forward",
    "use torch.nn.utils.parametrizations.spectral_norm",
)
