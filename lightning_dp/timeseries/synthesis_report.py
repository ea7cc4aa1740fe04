"""Beside every test of a synthesis: how far synthetic windows are from held-out real ones, and a picture."""

import math
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.privacy.ranks import Ranks
from lightning_dp.protocols import HasDays, provides, unit_of_values
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.base import WindowDataModule
from lightning_dp.timeseries.masks import kind_of
from lightning_dp.timeseries.synthesis_metrics import (
    autocorrelation_distance,
    discriminative_score,
    histogram_distance,
    marginal_distance,
    nearest_neighbours,
    predictive_score,
)
from lightning_dp.tracking.logged_metrics import LoggedMetrics
from lightning_dp.tracking.synthesis_figures import synthesis_figure


class SynthesisReport(Callback):
    """Logs `test/marginal_distance` and the like, and draws `plots/synthesis.png`.

    One synthetic window is drawn under the covariates of every test window that is observed throughout.
    What compares with train windows is logged as `nonprivate/…`: no ε covers it. Does nothing for other
    tasks.

    Args:
        max_windows: ≥ 3, windows of a kind that are compared, spread over the test set, and over the first
            batches of the train loader.
    """

    def __init__(self, *, max_windows: int = 2000) -> None:
        if max_windows < 3:
            raise ValueError(f"max_windows is {max_windows}, but at least 3 of a kind are compared.")
        self.max_windows = max_windows
        self._real: list[Tensor] = []
        self._synthetic: list[Tensor] = []

    def logged_metrics(self, module: LightningModule, data: Any) -> LoggedMetrics:
        """The distances, where the task is a synthesis."""
        wanted = _SCORES if isinstance(data, WindowDataModule) and data.kind == "synthesis" else ()
        return LoggedMetrics(test=frozenset(f"test/{score}" for score in wanted))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._real, self._synthetic = [], []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if kind_of(batch["target"]) != "synthesis":
            return
        whole = batch["observed"].all(dim=(1, 2)).nonzero().flatten()  # (b,)
        # As many of every batch: loaders are ordered by series, and the first ones are not all.
        batches = sum(trainer.num_test_batches) * Ranks().world_size
        quota = min(len(whole), math.ceil(self.max_windows / batches))
        whole = whole[torch.linspace(0, len(whole) - 1, quota).long()]
        if not len(whole):
            return
        chosen = Batch(
            values=batch["values"][whole],
            observed=batch["observed"][whole],
            target=batch["target"][whole],
            covariates=batch["covariates"][whole],
        )
        sample: Any = pl_module.sample
        self._synthetic.append(sample(chosen, num_samples=1)[:, 0].cpu())
        self._real.append(chosen["values"].cpu())

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ranks = Ranks()
        self._real, self._synthetic = _from_all(self._real, ranks), _from_all(self._synthetic, ranks)
        if sum(map(len, self._real)) < 3:
            return
        for name, value in ranks.on_rank_zero(lambda: self._scores(trainer)).items():
            pl_module.log(name, value)

    def _scores(self, trainer: Trainer) -> dict[str, float]:
        real, synthetic = _joined(self._real, self.max_windows), _joined(self._synthetic, self.max_windows)
        scores = {f"test/{name}": score(real, synthetic) for name, score in _SCORES.items()}
        train = self._train_windows(trainer)
        if train is not None:
            nearness = nearest_neighbours(synthetic, train=train, held_out=real)
            scores |= {
                # What the scores would be of a generator that makes real windows.
                "nonprivate/real_marginal_distance": marginal_distance(real, train),
                "nonprivate/real_discriminative_score": discriminative_score(real, train),
                "nonprivate/real_predictive_score": predictive_score(train, real),
                "nonprivate/nearest_train_of_synthetic": nearness.synthetic,
                "nonprivate/nearest_train_of_held_out": nearness.held_out,
                "nonprivate/copies": nearness.copies,
            }
        return scores

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = datamodule_of(trainer)
        if not self._real or not provides(data, HasDays) or not trainer.is_global_zero:
            return
        figure = synthesis_figure(
            _joined(self._real, self.max_windows),
            _joined(self._synthetic, self.max_windows),
            channel_names=data.channel_names,
            steps_per_day=data.steps_per_day,
            unit=unit_of_values(data),
        )
        folder = Path(trainer.default_root_dir) / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "synthesis.png", dpi=110)

    def _train_windows(self, trainer: Trainer) -> np.ndarray | None:
        """Fully observed train windows (N, L, C), or None where there are too few."""
        data = datamodule_of(trainer)
        loader = data.train_dataloader() if data is not None else None
        if not isinstance(loader, DataLoader):
            return None
        found: list[Tensor] = []
        # One pass at most: a user's item draws fresh windows each time.
        for batch in loader:
            found.append(batch["values"][batch["observed"].all(dim=(1, 2))])
            if sum(map(len, found)) >= self.max_windows:
                break
        return _joined(found, self.max_windows) if sum(map(len, found)) >= 3 else None


def _from_all(parts: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """Every rank's windows, its batches taken in turns: the first ones come from all over the set."""
    every = ranks.gather(parts)
    return [part for turn in zip_longest(*every) for part in turn if part is not None]


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "marginal_distance": marginal_distance,
    "histogram_distance": histogram_distance,
    "autocorrelation_distance": autocorrelation_distance,
    "discriminative_score": discriminative_score,
    "predictive_score": lambda real, synthetic: predictive_score(synthetic, real),
}
"""name → score of real and synthetic windows, (N, L, C) each."""


def _joined(parts: list[Tensor], most: int) -> np.ndarray:
    return torch.cat(parts)[:most].numpy().astype(np.float64)
