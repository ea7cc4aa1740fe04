"""What a training step returned, as the one number whose backward runs.

Per-row losses are the way to write a step: their mean is taken here, so no normaliser, no mask and no size of
a batch can couple units in it. A scalar mean stays allowed, and preflight looks at it harder.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def mean_loss(output: Any) -> Any:
    """The loss of a step's output.

    Args:
        output: per-row losses (R,), a scalar that is their mean, or a mapping with either under "losses" or
            "loss". "losses" goes before "loss", which Lightning asks for where fits are not private.

    Returns:
        The scalar mean; `output` itself (or its "loss") where it is no tensor, for the caller to refuse.

    Raises:
        ValueError: "losses" is no tensor with one entry a row.
    """
    if isinstance(output, Mapping):
        if "losses" not in output:
            return mean_loss(output.get("loss"))
        losses = output["losses"]
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"training_step returned losses of shape {shape}; one loss a row is (R,): average what is "
                "inside a row, and return no mean over rows"
            )
        return _mean(losses)
    if isinstance(output, Tensor) and output.ndim == 1:
        return _mean(output)
    return output


def _mean(losses: Tensor) -> Tensor:
    # In half precision the number of rows would be rounded, and with it every row's gradient.
    return losses.float().mean() if losses.element_size() < 4 else losses.mean()
