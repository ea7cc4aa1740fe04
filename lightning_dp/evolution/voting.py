"""Who a private row votes for: the synthetic samples of its own class that are nearest to it."""

import numpy as np
import torch
from torch import Tensor

_ROWS_AT_ONCE = 4096


def nearest(
    private: Tensor,
    candidates: Tensor,
    *,
    private_labels: np.ndarray,
    candidate_labels: np.ndarray,
    neighbours: int = 1,
) -> np.ndarray:
    """(R, k) numbers of the candidates with the same label that are nearest in ℓ2, NaN for an abstention.

    A row abstains where nobody stands for its label, or where its embedding is not finite, and with the rest
    of its k votes where fewer than k stand. It votes for no candidate twice, and of equally near ones for the
    first. Whatever a row holds, its votes depend on it and on public candidates alone.

    Args:
        private: (R, D) embeddings.
        candidates: (M, D).
        private_labels, candidate_labels: (R,) and (M,).
        neighbours: k ≥ 1 (Aug-PE, Xie et al., arXiv 2403.01749). What k votes weigh is the mechanism's
            part: `VoteCounts` bounds those of one unit together.
    """
    votes = np.full((len(private), neighbours), np.nan)
    valid = private.isfinite().all(dim=1).numpy()
    for label in np.unique(candidate_labels):
        options = np.flatnonzero(candidate_labels == label)
        own = candidates[torch.from_numpy(options)]
        offset = own.square().sum(dim=1) / 2  # (m,); ‖x − c‖² = ‖x‖² + 2·(offset − ⟨x, c⟩)
        rows = np.flatnonzero(valid & (private_labels == label))
        count = min(neighbours, len(options))
        for part in np.split(rows, range(_ROWS_AT_ONCE, len(rows), _ROWS_AT_ONCE)):
            scores = offset - private[torch.from_numpy(part)] @ own.T  # (r, m)
            for number in range(count):
                best = scores.argmin(dim=1, keepdim=True)  # of equals the first, which topk does not promise
                votes[part, number] = options[best[:, 0].numpy()]
                scores.scatter_(1, best, torch.inf)
    return votes


def per_unit(votes: np.ndarray, *, owners: np.ndarray, num_units: int) -> list[np.ndarray]:
    """All votes of each unit's rows, one array a unit: the ballots that `VoteCounts` counts.

    Args:
        votes: (R, k), of rows.
        owners: (R,) in [0, num_units).
        num_units: N.
    """
    order = np.argsort(owners, kind="stable")
    parts = np.split(votes[order], np.searchsorted(owners[order], np.arange(1, num_units)))
    return [part.ravel() for part in parts]
