"""What a half says of rows to the `DiffusionModule`: what they are, and what they are denoised under."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What R rows are denoised under.

    Attributes:
        net: (x_t (R, …), timesteps (R,)) → the network's output (R, …), told the condition.
        base: what the base denoiser is told of the rows; unused where there is none.
        region: (R, …) bool, where values are diffused: x_t is 0 elsewhere. None for everywhere.
    """

    net: Callable[[Tensor, Tensor], Tensor]
    base: Any = None
    region: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """K rows for each of B examples, those of an example consecutive: R = B·K.

    Attributes:
        clean: (R, …) x_0 as it is diffused, each row a function of its own example.
        condition: of the rows.
        mask: (R, …) bool, the positions that are scored; None for all.
    """

    clean: Tensor
    condition: Condition
    mask: Tensor | None = None
