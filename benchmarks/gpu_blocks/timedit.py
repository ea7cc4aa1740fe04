"""A diffusion transformer for series of 8 blocks of 256 and 168 tokens, vanilla and DP-aware, for the rest.

Simulated households, a week of hours: 144 known, 24 to forecast; the DP-aware conditioning of
arXiv 2602.22610. Says how many private steps a second there are, and how far they get in equal time.
"""

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from gpu_blocks.setting import Setting, attempt
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.nets.conditioning.adaln_zero import AdaLNZero
from lightning_dp.nets.conditioning.dp_aware_adaln_zero import DPAwareAdaLNZero
from lightning_dp.nets.series_dit import SeriesDiT
from lightning_dp.timeseries.data.simulator import HouseholdLoad
from lightning_dp.timeseries.module import TimeSeriesDiffusion
from lightning_dp.timeseries.normalise import DayMean

SECONDS = 60
_NEEDED_AFTER = 8.0  # seconds for the test and what comes before and after a fit


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    for number, (name, conditioning) in enumerate((("vanilla", AdaLNZero), ("DP-aware", DPAwareAdaLNZero))):
        for private in (True, False):
            parts_left = 4 - 2 * number - (not private)
            seconds = setting.of(setting.left() / parts_left - _NEEDED_AFTER, 1.0)
            work = lambda c=conditioning, p=private, s=seconds: _fit(setting, c(), private=p, seconds=s)  # noqa: E731
            yield {"private": private, **attempt(name, work)}


class _Clock(Callback):
    """When steps ended; the first few, in which much is set up, don't count."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())

    def steps_a_second(self) -> float | None:
        ends = self._ends[min(5, len(self._ends) // 2) :]
        return (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else None


def _fit(setting: Setting, conditioning: Any, *, private: bool, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    context, horizon = setting.of((144, 24), (24, 24))
    options: dict[str, Any] = {"context_length": context, "horizon": horizon, "windows_per_user": 1}
    data = HouseholdLoad(setting.of(2000, 20), num_days=setting.of(60, 16), batch_size=64, **options)
    data.prepare_data()
    data.setup("fit")
    net = SeriesDiT(
        conditioning,
        length=context + horizon,
        num_channels=data.num_channels,
        num_covariates=data.num_covariates,
        patch_size=setting.of(1, 24),
        hidden_size=setting.of(256, 16),
        depth=setting.of(8, 1),
        num_heads=setting.of(8, 2),
    )
    module = TimeSeriesDiffusion(net, normaliser=DayMean(steps_per_day=24), num_samples=2)
    batch, clock = setting.of(64, 4), _Clock()
    privacy = DifferentialPrivacy(
        noise_multiplier=1.0, delta=1e-4, expected_batch_size=batch, spot_check=setting.of(100, 0)
    )
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        trainer = Trainer(
            accelerator="cpu" if setting.fake else "gpu",
            devices=1,
            precision=setting.of("bf16-mixed", "32-true"),
            max_steps=setting.of(20_000, 2),
            max_time={"seconds": max(1.0, seconds)},
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            limit_test_batches=2,
            default_root_dir=folder,
            callbacks=[clock, privacy] if private else [clock],
        )
        trainer.fit(module, datamodule=data)
        found = trainer.test(module, datamodule=data, verbose=False)[0]
    figures = {name: found[name] for name in ("test/mse", "test/crps") if name in found}
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {
        "parameters": parameters,
        "units_a_step": batch,
        "steps": trainer.global_step,
        "steps_a_second": clock.steps_a_second(),
        **figures,
    }
