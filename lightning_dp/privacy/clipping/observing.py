"""What an engine found about every unit, for whoever reads along. No ε covers these numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UnitNorms:
    """One physical batch of U units, by parameter name; parameters that no unit reached may be missing.
    All on the device of the parameters.

    Attributes:
        norms: (U,) fp32 norms of the units' unclipped gradients; NaN or Inf where not finite.
        factors: (U,) fp32 what each unit's gradient was multiplied with; 0 where not finite.
        weights: (U,) fp32 as announced; 0 for padding.
    """

    norms: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]
    weights: Tensor


Observer = Callable[[UnitNorms], None]
