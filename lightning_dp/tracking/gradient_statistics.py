"""Statistics of per-unit gradient norms: quantiles, tail index, clipping bias. Arrays in, plain numbers out.

Shapes: n unit gradients (one unit in one step), pooled over steps.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

TAIL_SHARE = 0.05
"""k of the Hill estimator as a share of n: one rule for all runs, so that runs can be compared."""
_MIN_TAIL = 20
_Z = 1.959964  # two-sided 95 %


def quantiles(values: Array, levels: tuple[float, ...]) -> dict[str, float]:
    """`p50`, `p99`, … by linear interpolation; {} for no values."""
    if len(values) == 0:
        return {}
    found = np.quantile(values, levels)
    return {f"p{100 * level:g}": float(value) for level, value in zip(levels, found, strict=True)}


def ecdf(values: Array) -> dict[str, list[float]]:
    """The distribution function at a grid that is fine in the upper tail: `share` of values ≤ `norm`.

    The grid has a point for every hundredth, and beyond 99 % 60 more, evenly spaced in log(1 − share).
    """
    n = len(values)
    if n == 0:
        return {"share": [], "norm": []}
    shares = np.arange(100) / 100
    if n > 100:
        shares = np.concatenate([shares, 1 - np.geomspace(1e-2, 1 / n, 60)])
    return {"share": shares.tolist(), "norm": np.quantile(values, shares).tolist()}


def hill(values: Array, *, k: int, weights: Array | None = None) -> float:
    """Tail index α of P(X > x) ~ x^−α from the k largest values (Hill 1975, Annals of Statistics 3(5)).

    α̂ = k / Σ_{i ≤ k} ln(x_(i) / x_(k+1)): small means heavy; ≤ 2 means infinite variance. It is the maximum
    likelihood estimate for values that are Pareto beyond x_(k+1).

    Args:
        values: positive, more than k.
        k: ≥ 1.
        weights: how often each value counts (whole numbers); None for once.

    Returns:
        α̂ > 0; ∞ where the k + 1 largest are equal.
    """
    order = np.argsort(values)[::-1]
    ordered = np.log(values[order])
    if weights is None:
        spacings = ordered[:k] - ordered[k]
        total = float(spacings.sum())
    else:
        counts = weights[order]
        before = np.concatenate([[0.0], np.cumsum(counts)[:-1]])
        threshold = ordered[min(int(np.searchsorted(np.cumsum(counts), k + 1)), len(ordered) - 1)]
        used = np.clip(k - before, 0, counts)  # of each value's copies, those among the k largest
        total = float((used * (ordered - threshold)).sum())
    return k / total if total > 0 else float("inf")


def tail_index(
    values: Array, *, steps: Array, share: float = TAIL_SHARE, resamples: int = 200
) -> dict | None:
    """Hill's α̂ at k = share · n with a 95 % interval, and how much it hangs on k.

    The interval comes from resampling whole optimizer steps (200 times, seeded): gradients of one step share
    its weights, so they are not independent. With under 10 steps it is α̂ (1 ± 1.96 / √k), which holds for
    independent values (Hall 1982, JRSS-B 44(1)).

    Args:
        values: (n,) norms ≥ 0; zeros are left out.
        steps: (n,) the step of each.
        share: of the values that counts as tail, in (0, .5].
        resamples: bootstrap resamples.

    Returns:
        `alpha`, `low`, `high`, `interval` ("steps resampled" or "asymptotic"), `k`, `n`, `threshold`
        (x_(k+1)), `alpha_half_k`, `alpha_twice_k`; None with fewer than 100 positive values.
    """
    positive = values > 0
    values, steps = values[positive].astype(np.float64), steps[positive]
    n = len(values)
    k = max(_MIN_TAIL, int(share * n))
    if n < max(100, 2 * k + 1):
        return None
    alpha = hill(values, k=k)
    if not np.isfinite(alpha):
        return None
    numbers, step_of = np.unique(steps, return_inverse=True)
    if len(numbers) >= 10:
        low, high = _resampled(values, step_of=step_of, k=k, num_steps=len(numbers), resamples=resamples)
        interval = "steps resampled"
    else:
        low, high = alpha * (1 - _Z / k**0.5), alpha * (1 + _Z / k**0.5)
        interval = "asymptotic"
    return {
        "alpha": alpha,
        "low": float(low),
        "high": float(high),
        "interval": interval,
        "k": k,
        "n": n,
        "threshold": float(np.sort(values)[-k - 1]),
        "alpha_half_k": hill(values, k=max(1, k // 2)),
        "alpha_twice_k": hill(values, k=2 * k),
    }


def _resampled(
    values: Array, *, step_of: NDArray[np.integer[Any]], k: int, num_steps: int, resamples: int
) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    # Only values that can be among the k largest of a resample matter: 20 k leave room for bad luck.
    top = np.argsort(values)[::-1][: 20 * k + 1]
    top_values, top_steps = values[top], step_of[top]
    per_step = np.bincount(step_of, minlength=num_steps)
    found = []
    for _ in range(resamples):
        times = np.bincount(generator.integers(0, num_steps, num_steps), minlength=num_steps)
        own_k = max(1, round(k * float((times * per_step).sum()) / len(values)))
        weights = times[top_steps].astype(np.float64)
        if weights.sum() > own_k:
            found.append(hill(top_values, k=own_k, weights=weights))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def relative_to_step(values: Array, *, steps: Array) -> Array:
    """Each value over its step's median, so that the drift of norms over training is not taken for a tail."""
    numbers, step_of = np.unique(steps, return_inverse=True)
    medians = np.array([np.median(values[step_of == i]) for i in range(len(numbers))])
    medians = np.where(medians > 0, medians, np.nan)
    relative = values / medians[step_of]
    return np.where(np.isfinite(relative), relative, 0.0)


def share_of_squares(part: Array, whole: Array) -> Array:
    """(n,) ‖g_part‖² / ‖g‖², 0 where the gradient is 0."""
    return np.square(part) / np.where(whole > 0, np.square(whole), 1.0)


def unbiased_square(mean_norm: float, *, unit_squares: Array) -> float:
    """‖E r‖² from U draws of r: the square of their mean's norm, without what chance alone adds to it.

    (‖Σ r_u‖² − Σ ‖r_u‖²) / (U (U − 1)), for ‖mean r‖² has expectation ‖E r‖² + tr Cov(r) / U. May be
    negative; averaged over steps it is what ‖mean r‖² is taken for.

    Args:
        mean_norm: ‖mean_u r_u‖.
        unit_squares: (U,) ‖r_u‖², U ≥ 2.
    """
    units = len(unit_squares)
    return (units**2 * mean_norm**2 - float(unit_squares.sum())) / (units * (units - 1))
