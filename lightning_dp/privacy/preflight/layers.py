"""What the layers of a module say before anything is run."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from lightning_dp.privacy.preflight.finding import Finding


def find_in_layers(module: nn.Module) -> list[Finding]:
    """BatchNorm in any dimension, InstanceNorm with running statistics, lazy layers, nothing to train."""
    found = []
    for path, layer in module.named_modules():
        name = type(layer).__name__
        if isinstance(layer, _NormBase) and (layer.track_running_stats or "BatchNorm" in name):
            found.append(
                Finding(
                    code="batch-norm",
                    place=f"'{path}'",
                    problem=(
                        f"is a {name}: it mixes the examples of a batch or keeps running statistics of "
                        "private data, so no clipping makes it private"
                    ),
                    fix="replace it by GroupNorm or LayerNorm",
                )
            )
        elif isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():  # type: ignore[misc]
            found.append(
                Finding(
                    code="clipping",
                    place=f"'{path}'",
                    problem=f"is a {name}: nothing can clip parameters that do not exist yet",
                    fix="give it its input size",
                )
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        found.append(
            Finding(
                code="nothing-trains",
                place=type(module).__name__,
                problem="has no trainable parameter: nothing would be trained",
                fix="set requires_grad=True on what should be",
            )
        )
    return found
