"""Beside every test of forecasts or imputations: the baselines they have to beat, and a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_dp.lightning_internals import datamodule_of, is_rehearsal
from lightning_dp.protocols import HasDays, provides, unit_of_values
from lightning_dp.timeseries.baselines import (
    baselines_of_batch,
    choose_baselines,
    evaluate_baselines,
    last_value,
    mean_of_days,
)
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.data.base import WindowDataModule
from lightning_dp.timeseries.imputation_baselines import day_profile_and_linear
from lightning_dp.timeseries.masks import kind_of
from lightning_dp.tracking.figures import forecast_fan
from lightning_dp.tracking.logged_metrics import LoggedMetrics

_EXAMPLES = 3
_MOST_CHANNELS = 8


class PredictionReport(Callback):
    """Logs `baseline/NAME/METRIC` at the end of a test and draws `plots/forecast_fan.png`.

    For imputations the picture is `plots/imputation_fan.png`. The windows drawn are spread over the first
    test batch, not chosen; all channels are, up to eight. Does nothing for synthesis, or for data that
    doesn't say how long a day is.
    """

    def logged_metrics(self, module: LightningModule, data: Any) -> LoggedMetrics:
        """The scores of the baselines that belong to the data's task, which data of one's own may not say."""
        names: Any = ()
        if isinstance(data, WindowDataModule):
            names, _ = choose_baselines(
                data.kind, context_length=data.context_length, steps_per_day=data.steps_per_day
            )
        return LoggedMetrics(
            test=frozenset(_metric(name, score) for name in names for score in ("mse", "mae", "crps"))
        )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch: Batch | None = None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._batch is None and batch_idx == 0 and kind_of(batch["target"]) != "synthesis":
            self._batch = batch

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = datamodule_of(trainer)
        if self._batch is None or not provides(data, HasDays):
            return
        known: Any = data
        _, left_out = baselines_of_batch(self._batch, steps_per_day=data.steps_per_day)
        if left_out and trainer.is_global_zero and not is_rehearsal(trainer):
            print(f"baselines: {left_out}", flush=True)
        for name, scores in evaluate_baselines(known).items():
            for metric, value in scores.items():
                pl_module.log(_metric(name, metric), value)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = datamodule_of(trainer)
        batch = self._batch
        if batch is None or not provides(data, HasDays) or not trainer.is_global_zero:
            return
        rows = torch.linspace(0, len(batch["values"]) - 1, _EXAMPLES).long().unique()
        shown = _map(batch, lambda value: value[rows])
        sample: Any = pl_module.sample
        samples = sample(shown, num_samples=2 if is_rehearsal(trainer) else 100).cpu()
        shown = _map(shown, Tensor.cpu)
        forecast = kind_of(shown["target"]) == "forecast"
        names = list(data.channel_names)
        hidden = [one.float().mean() for one in shown["target"]]
        whole = "mean of days" in baselines_of_batch(shown, steps_per_day=data.steps_per_day)[0]
        name, baseline = "day profile + linear", day_profile_and_linear
        if forecast:
            name, baseline = ("mean of days", mean_of_days) if whole else ("last value", last_value)
        figure = forecast_fan(
            samples,
            values=shown["values"],
            observed=shown["observed"],
            target=shown["target"],
            channel_names=names,
            steps_per_day=data.steps_per_day,
            unit=unit_of_values(data),
            baseline=baseline(shown, steps_per_day=data.steps_per_day),
            baseline_name=name,
            channels=list(range(min(_MOST_CHANNELS, len(names)))),
            example_names=[
                f"test window {row}" if forecast else f"test window {row}, {share:.0%} to fill in"
                for row, share in zip(rows.tolist(), hidden, strict=True)
            ],
            context_hours=48.0 if forecast else None,
            title=f"the first {_MOST_CHANNELS} of {len(names)} channels"
            if len(names) > _MOST_CHANNELS
            else "",
        )
        folder = Path(trainer.default_root_dir) / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / ("forecast_fan.png" if forecast else "imputation_fan.png"), dpi=120)


def _metric(baseline: str, score: str) -> str:
    return f"baseline/{baseline.replace(' ', '_')}/{score}"


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return Batch(
        values=change(batch["values"]),
        observed=change(batch["observed"]),
        target=change(batch["target"]),
        covariates=change(batch["covariates"]),
    )
