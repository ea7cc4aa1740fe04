"""How far samples are from real images: Fréchet and kernel distance, precision and recall.

All by torch-fidelity, on features of `features.py`. What they are compared with is a choice with a price:
the test split, as here, tells nothing about the train images; a train split is private, and a statistic of it
that nobody charged is `nonprivate/`.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from lightning_dp.data_files import cache_folder
from lightning_dp.images.features import FeatureExtractor, Inception

DISTANCES = {
    "inception": ("fid", "kid", "precision", "recall"),
    "lite0": ("fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"),
}
"""Extractor → the names of `distances`."""

_NEIGHBOURS = 4
_LEAST_IMAGES = 50


def distances(samples: Tensor, real: Tensor, *, extractor_name: str) -> dict[str, float]:
    """Four metrics of two sets of features, under the extractor's names.

    Args:
        samples: (N, D), of generated images.
        real: (M, D).
        extractor_name: of the `FeatureExtractor`.

    Raises:
        ValueError: fewer than 50 images in either set.
    """
    least = min(len(samples), len(real))
    if least < _LEAST_IMAGES:
        raise ValueError(f"distances need at least {_LEAST_IMAGES} images on either side, not {least}.")
    frechet, kernel, precision, recall = DISTANCES[extractor_name]
    fid = fid_statistics_to_metric(
        fid_features_to_statistics(samples.double()), fid_features_to_statistics(real.double()), False
    )
    kid = kid_features_to_metric(
        samples.double(), real.double(), kid_subsets=50, kid_subset_size=min(1000, least), verbose=False
    )
    prc = prc_features_to_metric(samples, real, prc_neighborhood=_NEIGHBOURS, verbose=False)
    return {
        frechet: float(fid["frechet_inception_distance"]),
        kernel: float(kid["kernel_inception_distance_mean"]),
        precision: float(prc["precision"]),
        recall: float(prc["recall"]),
    }


def inception_score(images: np.ndarray, *, extractor: Inception) -> float:
    """IS (Salimans et al. 2016), of 10 parts.

    Args:
        images: (N, C, S, S) uint8.
        extractor: for its class scores.
    """
    return float(isc_features_to_metric(extractor.logits(images))["inception_score_mean"])


def cached_features(images: np.ndarray, *, extractor: FeatureExtractor) -> Tensor:
    """Features of images that are compared with again and again, kept in the user's cache folder.

    The file's name holds a digest of the pixels, so it can't be that of other images.

    Args:
        images: (N, C, S, S) uint8.
    """
    digest = hashlib.sha256(repr(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()
    path = cache_folder() / "features" / f"{extractor.name}-{digest[:24]}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    features = extractor.features(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(features, temporary)
    temporary.replace(path)
    return features
