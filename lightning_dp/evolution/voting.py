"""Who a private row votes for: the nearest synthetic sample of its own class."""

import numpy as np
import torch
from torch import Tensor

_ROWS_AT_ONCE = 4096


def nearest(
    private: Tensor, candidates: Tensor, *, private_labels: np.ndarray, candidate_labels: np.ndarray
) -> np.ndarray:
    """(R,) numbers of the candidates with the same label that are nearest in ℓ2, NaN for an abstention.

    A row abstains where nobody stands for its label, or where its embedding is not finite. Whatever a row
    holds, its vote depends on it and on public candidates alone.

    Args:
        private: (R, D) embeddings.
        candidates: (M, D).
        private_labels, candidate_labels: (R,) and (M,).
    """
    votes = np.full(len(private), np.nan)
    valid = private.isfinite().all(dim=1).numpy()
    for label in np.unique(candidate_labels):
        options = np.flatnonzero(candidate_labels == label)
        own = candidates[torch.from_numpy(options)]
        offset = own.square().sum(dim=1) / 2  # (m,); ‖x − c‖² = ‖x‖² + 2·(offset − ⟨x, c⟩)
        rows = np.flatnonzero(valid & (private_labels == label))
        for part in np.split(rows, range(_ROWS_AT_ONCE, len(rows), _ROWS_AT_ONCE)):
            scores = offset - private[torch.from_numpy(part)] @ own.T  # (r, m)
            votes[part] = options[scores.argmin(dim=1).numpy()]
    return votes


def per_unit(votes: np.ndarray, *, owners: np.ndarray, num_units: int) -> list[np.ndarray]:
    """The votes of each unit's rows, one array a unit: what `VoteCounts` shares one vote over.

    Args:
        votes: (R,), of rows.
        owners: (R,) in [0, num_units).
        num_units: N.
    """
    order = np.argsort(owners, kind="stable")
    return np.split(votes[order], np.searchsorted(owners[order], np.arange(1, num_units)))
