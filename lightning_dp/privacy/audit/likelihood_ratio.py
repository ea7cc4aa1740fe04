"""How unusual a unit's loss is for models that were trained without it, by a few such models."""

import numpy as np


def offline_ratio(target: np.ndarray, shadows: np.ndarray, *, trained_on: np.ndarray) -> np.ndarray:
    """(n,) standard deviations by which each unit fits the target better than models that never saw it.

    LiRA without a model for each side (Carlini et al. 2022, arXiv 2112.03570, Sec. VI-A "offline attack"),
    with one standard deviation for all units, as few models allow no other (their Fig. 10).

    Args:
        target: (n,) how well each unit fits the attacked model, such as minus its loss.
        shadows: (s, n) the same for s models of the same kind.
        trained_on: (s, n) bool, which units those were trained on.

    Returns:
        Scores; 0 for a unit that every shadow model was trained on.

    Raises:
        ValueError: there are fewer than two shadow models.
    """
    if len(shadows) < 2:
        raise ValueError(f"{len(shadows)} shadow model(s) don't tell what is usual: give at least 2")
    out = np.where(trained_on, np.nan, shadows)
    known = (~trained_on).sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(out, axis=0) / np.where(known, known, np.nan)
        residuals = out - mean
    freedom = max(1, int(known.sum() - (known > 0).sum()))
    deviation = np.sqrt(np.nansum(residuals**2) / freedom)
    return np.asarray(np.nan_to_num((target - mean) / max(float(deviation), 1e-12), nan=0.0))
