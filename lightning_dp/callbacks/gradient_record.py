"""What diagnostics of gradients keep: shares of ‖g‖², quantiles of each step, and a pool of units."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from lightning_dp.privacy.clipping.observing import UnitNorms
from lightning_dp.tracking.gradient_statistics import (
    ecdf,
    quantiles,
    relative_to_step,
    share_of_squares,
    tail_index,
)

_NORM_LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
_ETA_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def squares_of(seen: list[UnitNorms], group_of: Callable[[str], str | None]) -> dict[str, np.ndarray]:
    """By group of parameters: (units,) squared norms, of the units with a weight."""
    groups: dict[str, np.ndarray] = {}
    for batch in seen:
        present = batch.weights > 0
        sums: dict[str, Tensor] = {}
        for name, norm in batch.norms.items():
            group = group_of(name)
            if group is None:
                continue
            square = norm[present.to(norm.device)].double().square()
            sums[group] = sums[group] + square if group in sums else square
        for group, square in sums.items():
            values = square.cpu().numpy()
            groups[group] = np.concatenate([groups[group], values]) if group in groups else values
    return groups


class _Shares:
    """Summed shares of ‖g‖²: of all units, and of each step's largest."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._units = np.zeros(2)

    def add(
        self, squares: dict[str, np.ndarray], *, norms: np.ndarray, finite: np.ndarray, largest: np.ndarray
    ) -> dict[str, float]:
        """Note one step's units; return the mean shares of that step."""
        self._units += [len(norms), largest.sum()]
        latest = {}
        for name, own in squares.items():
            if len(own) == len(finite):  # else of something that not every physical batch reached
                share = own[finite] / np.where(norms > 0, np.square(norms), 1)
                latest[name] = float(share.mean())
                sums = np.array([share.sum(), share[largest].sum()])
                self._sums[name] = self._sums.get(name, np.zeros(2)) + sums
        return latest

    def summary(self) -> dict[str, dict[str, float]]:
        """{mean, largest} by name."""
        return {
            name: dict(zip(("mean", "largest"), (sums / self._units).tolist(), strict=True))
            for name, sums in self._sums.items()
        }


class GradientRecord:
    """Everything seen so far: quantiles of each step, and unit gradients pooled over steps.

    Args:
        partitions: names of the parts of the parameters that norms are of; "all" is one of them.
        max_units: of the pool, which is thinned to so many at random.
    """

    def __init__(self, partitions: tuple[str, ...], *, max_units: int) -> None:
        self.bias: list[dict[str, Any]] = []
        self.steps: dict[str, Any] = {"step": [], "clip_fraction": [], "eta_mean": [], "cond_share": []}
        self.steps |= {partition: {} for partition in partitions}
        self._partitions = partitions
        self._layers, self._paths = _Shares(), _Shares()
        self._max_units = max_units
        self._units = self._not_finite = 0
        self._pooled: dict[str, np.ndarray] = {}
        # Which units stay when there are too many must not depend on anything the model draws.
        self._generator = np.random.default_rng(0)

    def add(
        self,
        step: int,
        arrays: dict[str, np.ndarray],
        *,
        layers: dict[str, np.ndarray],
        paths: dict[str, np.ndarray],
    ) -> dict[str, float]:
        """Note the units of one step; return what is worth logging of it, {} where there were none."""
        finite = np.isfinite(arrays["all"])
        self._not_finite += int((~finite).sum())
        arrays = {name: values[finite] for name, values in arrays.items()}
        n = len(arrays["all"])
        if n == 0:
            return {}
        self._units += n
        norms = arrays["all"]
        largest = norms >= np.quantile(norms, 0.99)
        which: dict[str, Any] = {"norms": norms, "finite": finite, "largest": largest}
        self._layers.add(layers, **which)
        shares = self._paths.add(paths, **which)
        arrays["eta"] = np.where(norms > 0, arrays.pop("clipped_norm") / np.where(norms > 0, norms, 1), 1.0)
        arrays["clipped"] = arrays.pop("factor") < 1
        if "cond" in arrays:
            arrays["cond_share"] = share_of_squares(arrays["cond"], norms)
        latest = {
            "clip_fraction": float(arrays["clipped"].mean()),
            "eta_mean": float(arrays["eta"].mean()),
        }
        if "cond" in arrays:
            latest["cond_share"] = float(arrays["cond_share"].mean())
        latest |= {f"share_{path}": share for path, share in shares.items()}
        self.steps["step"].append(step)
        for name in ("clip_fraction", "eta_mean", "cond_share"):
            self.steps[name].append(latest.get(name))
        for partition in self._partitions:
            for level, value in quantiles(arrays[partition], _NORM_LEVELS).items():
                self.steps[partition].setdefault(level, []).append(value)
                if level in ("p50", "p99"):
                    latest[f"{partition}_{level}"] = value
        self._pool({**arrays, "step": np.full(n, step), "order": self._generator.random(n)})
        return latest

    def _pool(self, arrays: dict[str, np.ndarray]) -> None:
        if not self._pooled:
            self._pooled = {name: values[:0] for name, values in arrays.items()}
        self._pooled = {name: np.concatenate([self._pooled[name], arrays[name]]) for name in arrays}
        # Uniform without replacement: the smallest of independent random numbers stay.
        if len(self._pooled["order"]) > 2 * self._max_units:
            self._thin()

    def _thin(self) -> None:
        keep = np.sort(np.argsort(self._pooled["order"])[: self._max_units])
        self._pooled = {name: values[keep] for name, values in self._pooled.items()}

    def summary(self, parameters: dict[str, int]) -> dict[str, Any]:
        """The report, from `first_step` on."""
        self._thin()
        pooled, steps = self._pooled, self._pooled["step"]
        clipped = pooled["clipped"]
        return {
            "first_step": self.steps["step"][0],
            "last_step": self.steps["step"][-1],
            "observed_steps": len(self.steps["step"]),
            "units": self._units,
            "units_not_finite": self._not_finite,
            "units_kept": len(steps),
            "partitions": {
                name: {"parameters": parameters[name], **_distribution(pooled[name], steps=steps)}
                for name in self._partitions
            },
            "paths": self._paths.summary(),
            "layers": self._layers.summary(),
            "clip_fraction": float(clipped.mean()),
            "eta": {"mean": float(pooled["eta"].mean()), **quantiles(pooled["eta"], _ETA_LEVELS)},
            "cond_share": None
            if "cond_share" not in pooled
            else {
                "mean": float(pooled["cond_share"].mean()),
                "clipped": _mean(pooled["cond_share"][clipped]),
                "not_clipped": _mean(pooled["cond_share"][~clipped]),
            },
            "bias": self.bias,
            "steps": self.steps,
        }


def _distribution(norms: np.ndarray, *, steps: np.ndarray) -> dict[str, Any]:
    levels = quantiles(norms, _NORM_LEVELS)
    return {
        "mean": float(norms.mean()),
        "quantiles": levels,
        "tail_ratio": levels["p99"] / levels["p50"] if levels["p50"] > 0 else None,
        "ecdf": ecdf(norms),
        "tail_index": tail_index(norms, steps=steps),
        "tail_index_within_steps": tail_index(relative_to_step(norms, steps=steps), steps=steps),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
