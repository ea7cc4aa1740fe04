"""What the private log says of the units' gradient norms: of a whole logical batch, over all ranks."""

from typing import final

import torch
from torch import Tensor

from lightning_dp.privacy.ranks import Ranks


@final
class NormStatistics:
    """Counts and sums of one logical batch; they stay on the device until the step."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, norms: Tensor, *, weights: Tensor, bound: float) -> None:
        """Count a physical batch.

        Args:
            norms: (U,) fp32 gradient norms of its units, inf or NaN where a unit's gradient is.
            weights: (U,) 0 for units that only fill the batch.
            bound: C, above which a unit is clipped.
        """
        real = weights.to(norms.device) > 0  # (U,)
        finite = real & norms.isfinite()  # (U,)
        total = torch.where(finite, norms, 0.0).sum()
        clipped = (finite & (norms > bound)).sum()
        sums = torch.stack([real.sum(), finite.sum(), total, clipped])  # (4,)
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, ranks: Ranks) -> dict[str, float]:
        """What is logged of the step; the next one begins at nothing."""
        assert self._sums is not None
        units, finite, total, clipped = ranks.total(self._sums).tolist()
        self._sums = None
        statistics = {"nonprivate/units": units, "nonprivate/units_not_finite": units - finite}
        if finite:
            statistics["nonprivate/grad_norm"] = total / finite
            statistics["nonprivate/clip_fraction"] = clipped / finite
        return statistics
