"""How far synthetic windows are from real ones. Only fully observed windows can be compared.

None of these is private by itself: a score that reads train windows is `nonprivate/`, one that reads held-out
windows says nothing about the training data but is not covered by any ε either.

Shapes: N windows, L time steps, C channels.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import wasserstein_distance
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors

_HISTOGRAM_BINS = 50
_RIDGE_STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)


def marginal_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Wasserstein-1 distance between the values' distributions, in standard deviations of the real ones.

    Args:
        real: (N, L, C).
        synthetic: (M, L, C) in the same units.

    Returns:
        Mean over channels; 0 where the distributions agree. A constant real channel counts in its own units.
    """
    _same_windows(real, synthetic)
    spread = real.std(axis=(0, 1))
    distances = [
        wasserstein_distance(real[..., channel].ravel(), synthetic[..., channel].ravel())
        for channel in range(real.shape[2])
    ]
    return float(np.mean(np.array(distances) / np.where(spread > 0, spread, 1.0)))


def histogram_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Total variation between histograms of the values: the share of mass that is in the wrong bin.

    50 equal bins span the range of the real values; what is beyond counts in the outermost ones.

    Args:
        real: (N, L, C).
        synthetic: (M, L, C) in the same units.

    Returns:
        Mean over channels, in [0, 1].
    """
    _same_windows(real, synthetic)
    distances = []
    for channel in range(real.shape[2]):
        edges = np.histogram_bin_edges(real[..., channel], bins=_HISTOGRAM_BINS)
        shares = [
            np.histogram(np.clip(values[..., channel], edges[0], edges[-1]), bins=edges)[0]
            / values[..., channel].size
            for values in (real, synthetic)
        ]
        distances.append(np.abs(shares[0] - shares[1]).sum() / 2)
    return float(np.mean(distances))


def autocorrelation(windows: np.ndarray) -> np.ndarray:
    """Mean sample autocorrelation of windows, at lags 0 … L − 1.

    ρ_k = Σ_t (x_t − x̄)(x_{t+k} − x̄) / Σ_t (x_t − x̄)² within each window (Box & Jenkins), averaged over the
    windows that aren't constant.

    Args:
        windows: (N, L, C).

    Returns:
        (L, C); NaN for a channel that is constant in every window.
    """
    length = windows.shape[1]
    centred = windows - windows.mean(axis=1, keepdims=True)
    # Zeros behind the window keep the convolution from wrapping around.
    spectrum = np.abs(np.fft.rfft(centred, n=2 * length, axis=1)) ** 2
    products = np.fft.irfft(spectrum, n=2 * length, axis=1)[:, :length]  # (N, L, C)
    energy = products[:, :1]  # (N, 1, C)
    varies = energy > 1e-12 * length * np.maximum(np.square(windows).mean(axis=1, keepdims=True), 1e-12)
    correlations = np.where(varies, products / np.where(varies, energy, 1.0), 0.0)
    count = varies.sum(axis=0)  # (1, C)
    return np.where(count > 0, correlations.sum(axis=0) / np.maximum(count, 1), np.nan)


def autocorrelation_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Mean absolute difference of `autocorrelation` over lags 1 … L // 2 and channels.

    Args:
        real: (N, L, C).
        synthetic: (M, L, C).

    Returns:
        In [0, 2]; channels that are constant on either side are left out, NaN where all are.
    """
    _same_windows(real, synthetic)
    lags = slice(1, real.shape[1] // 2 + 1)
    gap = np.abs(autocorrelation(real)[lags] - autocorrelation(synthetic)[lags])
    return float(np.nanmean(gap)) if not np.isnan(gap).all() else float("nan")


def discriminative_score(real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0) -> float:
    """How well gradient boosting tells real from synthetic: |accuracy − ½| on windows it hasn't seen.

    scikit-learn's `HistGradientBoostingClassifier` with its defaults, on the values of a window and their
    first differences; equal numbers of both kinds; mean over 3 stratified folds. TimeGAN's score (Yoon et al.
    2019) is the same quantity with a recurrent network as the judge: the two are not comparable.

    Args:
        real: (N, L, C), N ≥ 3; those windows should not have been trained on.
        synthetic: (M, L, C), M ≥ 3.
        seed: of the choice of windows, folds and judge.

    Returns:
        In [0, ½]; 0 where the judge can't tell.
    """
    _same_windows(real, synthetic)
    rng = np.random.default_rng(seed)
    number = min(len(real), len(synthetic))
    if number < 3:
        raise ValueError(
            f"{number} windows of a kind are too few to judge; 3 are the least, some hundreds are useful."
        )
    features = [_with_differences(_choose(windows, number, rng=rng)) for windows in (real, synthetic)]
    labels = np.repeat([0, 1], number)
    judge = HistGradientBoostingClassifier(random_state=seed)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    return float(abs(cross_val_score(judge, np.concatenate(features), labels, cv=folds).mean() - 0.5))


def predictive_score(train: np.ndarray, real: np.ndarray) -> float:
    """Train on `train`, test on `real`: the error of a ridge forecast of each window's last quarter.

    The last ⌈L/4⌉ steps of all channels are regressed on the steps before (scikit-learn's `RidgeCV`, its
    strength chosen on the train windows). With synthetic train windows this is train on synthetic, test on
    real; with real ones it is what to compare that to.

    Args:
        train: (N, L, C), N ≥ 2, L ≥ 2.
        real: (M, L, C), windows that neither the generator nor `train` has seen.

    Returns:
        Mean absolute error in standard deviations of the real channels.
    """
    _same_windows(real, train)
    if real.shape[1] < 2 or len(train) < 2:
        raise ValueError(
            f"train has shape {train.shape}; a forecast is fitted to at least 2 windows of at least 2 steps."
        )
    ahead = -(-real.shape[1] // 4)
    mean, spread = real.mean(axis=(0, 1)), real.std(axis=(0, 1))
    scaled = [(windows - mean) / np.where(spread > 0, spread, 1.0) for windows in (train, real)]
    (inputs, answers), (test_inputs, test_answers) = (
        (windows[:, :-ahead].reshape(len(windows), -1), windows[:, -ahead:].reshape(len(windows), -1))
        for windows in scaled
    )
    forecaster = RidgeCV(_RIDGE_STRENGTHS).fit(inputs, answers)
    forecast = forecaster.predict(test_inputs).reshape(test_answers.shape)  # (M,) where there is one answer
    return float(np.abs(forecast - test_answers).mean())


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Are synthetic windows closer to the train set than fresh real ones are? Reads train windows.

    A sign of memorisation, and no proof of its absence: ε is what bounds that.

    Attributes:
        synthetic: median distance of a synthetic window to its nearest train window.
        held_out: median distance of a held-out real window to its nearest train window.
        copies: share of synthetic windows that are closer to a train window than 99 % of the held-out ones.
    """

    synthetic: float
    held_out: float
    copies: float


def nearest_neighbours(synthetic: np.ndarray, *, train: np.ndarray, held_out: np.ndarray) -> Nearness:
    """Euclidean distances to the nearest train window, channels in standard deviations of the train set.

    Args:
        synthetic: (M, L, C).
        train: (N, L, C), what the generator was trained on.
        held_out: (K, L, C) real windows that it wasn't.

    Returns:
        Distances per value: root mean square over the L·C values of a window.
    """
    _same_windows(train, synthetic)
    _same_windows(train, held_out)
    spread = train.std(axis=(0, 1))
    scale = np.where(spread > 0, spread, 1.0) * np.sqrt(train[0].size)
    index = NearestNeighbors(n_neighbors=1).fit((train / scale).reshape(len(train), -1))
    near, usual = (
        index.kneighbors((windows / scale).reshape(len(windows), -1))[0][:, 0]
        for windows in (synthetic, held_out)
    )
    return Nearness(
        synthetic=float(np.median(near)),
        held_out=float(np.median(usual)),
        copies=float((near < np.quantile(usual, 0.01)).mean()),
    )


def _with_differences(windows: np.ndarray) -> np.ndarray:
    """(N, L, C) → (N, (2L − 1)·C)."""
    both = np.concatenate([windows, np.diff(windows, axis=1)], axis=1)
    return both.reshape(len(windows), -1)


def _choose(windows: np.ndarray, number: int, *, rng: np.random.Generator) -> np.ndarray:
    return windows[rng.permutation(len(windows))[:number]]


def _same_windows(real: np.ndarray, other: np.ndarray) -> None:
    if real.ndim != 3 or other.ndim != 3 or real.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"windows have the shapes {real.shape} and {other.shape}; both must be (N, L, C) with the same "
            "length and channels."
        )
    if not len(real) or not len(other):
        raise ValueError("there are no windows to compare; at least one of each kind is needed.")
    if not (np.isfinite(real).all() and np.isfinite(other).all()):
        raise ValueError("windows hold NaN or ∞; leave out those with missing values before comparing.")
