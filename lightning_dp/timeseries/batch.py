"""The one batch format of the time-series half: what a dataset yields and a module reads."""

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict):
    """B windows of L time steps, C channels, F covariates.

    Attributes:
        values: (B, L, C) float32 in original units; 0 where nothing was observed.
        observed: (B, L, C) bool, True where the data has a value.
        target: (B, L, C) bool, True where the model has to predict (and never sees `values`). May
            include positions that were not observed: they are generated but not scored or trained on.
        covariates: (B, L, F) float32 in [−1, 1], known for every step (calendar, weather, class).
    """

    values: Tensor
    observed: Tensor
    target: Tensor
    covariates: Tensor
