"""What in a model would break the guarantee, found before any private row is read."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def check_module(module: nn.Module) -> None:
    """Raise ValueError, naming the module path and the way out, if `module` can't be trained privately.

    Found here: layers that mix the examples of a batch or remember data in buffers (BatchNorm in any
    dimension, InstanceNorm with running statistics), and a module with nothing to train.
    """
    for path, layer in module.named_modules():
        if isinstance(layer, _NormBase) and (
            layer.track_running_stats or "BatchNorm" in type(layer).__name__
        ):
            raise ValueError(
                f"'{path}' is a {type(layer).__name__}: it mixes the examples of a batch or keeps running "
                "statistics of private data, so no clipping makes it private; replace it by GroupNorm or "
                "LayerNorm"
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("the module has no trainable parameter: nothing would be trained")
