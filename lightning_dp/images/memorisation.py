"""Whether samples are copies: distances to the nearest train image. Reads private images, so "
"`nonprivate/`."""

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 4096


MEMORISATION = (
    "nonprivate/copies",
    "nonprivate/nearest_train_of_samples",
    "nonprivate/nearest_train_of_test",
)
"""The names of `memorisation`."""


def nearest_distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) Euclidean distance per pixel of each image, in [0, 255], to the nearest of the others.

    Args:
        images: (N, C, S, S) uint8.
        others: (M, C, S, S) uint8.
    """
    x = _flat(images)
    best = torch.full((len(x),), float("inf"))
    for start in range(0, len(others), _AT_ONCE):
        y = _flat(others[start : start + _AT_ONCE])
        best = torch.minimum(best, torch.cdist(x, y).amin(dim=1))
    return (best / x.shape[1] ** 0.5).numpy()


def memorisation(samples: np.ndarray, *, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """How near samples come to train images, beside how near unseen real images come.

    A sample counts as a copy where it is nearer to a train image than 99 % of the test images are. An honest
    model has about 1 % of them or, where its samples are blurry, more; duplicates in the data count too. So
    it is a question to look into, and no bound on privacy.

    Args:
        samples, train, test: (·, C, S, S) uint8.

    Returns:
        `nonprivate/copies` in percent and the median distances `nonprivate/nearest_train_of_samples` and
        `nonprivate/nearest_train_of_test`.
    """
    of_samples, of_test = nearest_distances(samples, train), nearest_distances(test, train)
    copies = float(100 * (of_samples < np.quantile(of_test, 0.01)).mean())
    values = (copies, float(np.median(of_samples)), float(np.median(of_test)))
    return dict(zip(MEMORISATION, values, strict=True))


def _flat(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), -1)).float()
