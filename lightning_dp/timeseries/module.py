"""The LightningModule of the time-series half: a conditional diffusion model of the masked part of a window.

Ordinary Lightning code: training_step returns per-row losses and their mean, and a callback makes it
private. Whether a window is a forecast, an imputation or a synthesis is up to the batch's `target` mask.

Shapes: B windows, L steps, C channels, F covariates, K noise draws, n samples, R = B·K rows.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.callbacks.precision import forward_precision
from lightning_dp.callbacks.selection_report import SelectionReport
from lightning_dp.diffusion.objective import draw_timesteps, per_example_loss
from lightning_dp.diffusion.prediction import Prediction, Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine, NoiseSchedule
from lightning_dp.lightning_internals import datamodule_of, is_configured_by_cli
from lightning_dp.nets.denoising_net import DenoisingNet
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.protocols import StandardisesErrors, provides
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.day_ensemble import DayEnsemble
from lightning_dp.timeseries.metrics import (
    CRPS,
    MAE,
    MSE,
    R2,
    Coverage,
    scored_positions,
    sum_over_channels,
)
from lightning_dp.timeseries.normalise import Frame, Normaliser, visible_mask
from lightning_dp.timeseries.prediction_report import PredictionReport
from lightning_dp.timeseries.synthesis_report import SynthesisReport
from lightning_dp.tracking.logged_metrics import LoggedMetrics

POINTS = ("denoiser", "mean", "median")
_COVERAGE_LEVELS = (0.5, 0.9)


class TimeSeriesDiffusion(LightningModule):
    """Diffusion over the target positions of a window, given everything else in it.

    Args:
        net: maps (noisy, timesteps, context, visible, profile, covariates) to the diffusion target, and has
            the same in two halves, `encode` and `denoise`, for sampling; see `SeriesDiT`. Its attribute
            `rows_per_example` says how many layer rows it makes of one.
        normaliser: the frame in which the series is diffused.
        ensemble: what the window's own days say, as the denoiser whose output `net` only corrects; None lets
            it learn everything.
        schedule: noise levels; None for `Cosine()`.
        prediction: what `net` predicts; None for `Velocity()`.
        sampler: how samples are drawn; None for `Sampler()`.
        noise_draws: K ≥ 1 timesteps and noises per example, in one gradient of that example (DPDM's noise
            multiplicity, arXiv 2210.09929).
        min_snr_gamma: γ of min-SNR weighting, or None.
        condition_dropout: probability, in [0, 1), that a train example hides its condition (context and
            covariates) from the net; each example on its own. What `guidance_scale` needs.
        guidance_scale: w of classifier-free guidance while sampling (arXiv 2207.12598, eq. 6 with w = 1 for
            no guidance): output = unconditional + w·(conditional − unconditional), two evaluations a step.
        bounds: what a value can be, a public fact such as (0, inf) for consumption: samples and point
            forecasts are cut off there. None cuts nothing.
        num_samples: n of test and predict.
        point: the point forecast of test and predict: "denoiser" (E[x_0 | context] as the net estimates it at
            the noisiest step: one evaluation, no sampling error; of a net that predicts noise it says next to
            nothing), or the "mean" or "median" of the samples.
        quantile_levels: of predict.
        max_sampling_rows: rows per call of the net while sampling, for memory.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler that is stepped once per optimizer step, or None.
        adapter: which parameters of `net` train; None for all.
    """

    def __init__(
        self,
        net: DenoisingNet,
        *,
        normaliser: Normaliser,
        ensemble: DayEnsemble | None = None,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        sampler: Sampler | None = None,
        noise_draws: int = 1,
        min_snr_gamma: float | None = None,
        condition_dropout: float = 0.0,
        guidance_scale: float = 1.0,
        bounds: tuple[float, float] | None = None,
        num_samples: int = 50,
        point: str = "denoiser",
        quantile_levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
        max_sampling_rows: int = 1024,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        if noise_draws < 1:
            raise ValueError(
                f"noise_draws is {noise_draws}, but every example needs at least one: 1 to 16 are usual."
            )
        if num_samples < 1:
            raise ValueError(
                f"num_samples is {num_samples}, but a forecast needs at least one: 20 to 100 are usual."
            )
        if not 0 <= condition_dropout < 1:
            raise ValueError(
                f"condition_dropout is {condition_dropout}, but it is a probability below 1: .1 is usual."
            )
        if guidance_scale != 1 and not condition_dropout:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but a net that was always told its condition can't do "
                "without: train with condition_dropout, .1 for instance."
            )
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(
                f"bounds is {bounds}, but the lower one comes first: (0, inf) for what can't be negative."
            )
        if point not in POINTS:
            raise ValueError(f"point is {point!r}, but it has to be one of {', '.join(POINTS)}.")
        if not all(0 < level < 1 for level in quantile_levels):
            raise ValueError(
                f"quantile_levels is {quantile_levels}, but levels lie strictly between 0 and 1."
            )
        # Under LightningCLI this saves the configuration, and load_from_checkpoint needs nothing else. In
        # Python these arguments are live objects that don't belong in a checkpoint; the caller hands them
        # over again: load_from_checkpoint(path, net=..., normaliser=...).
        from_config = is_configured_by_cli()
        self.save_hyperparameters(ignore=None if from_config else _LIVE_ARGUMENTS)
        if from_config:
            for name, part in (("net", net), ("normaliser", normaliser)):
                self.hparams[name] = _accepted_only(self.hparams[name], part)
        self.net = net
        self.normaliser = normaliser
        self.ensemble = ensemble
        self.schedule = Cosine() if schedule is None else schedule
        self.prediction = prediction or Velocity()
        self.sampler = sampler or Sampler()
        self.noise_draws = noise_draws
        self.min_snr_gamma = min_snr_gamma
        self.condition_dropout = condition_dropout
        self.guidance_scale = guidance_scale
        self.bounds = (-float("inf"), float("inf")) if bounds is None else bounds
        self.num_samples = num_samples
        self.point = point
        self.quantile_levels = tuple(quantile_levels)
        self.max_sampling_rows = max_sampling_rows
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.adapter = adapter
        if adapter is not None:
            adapter.apply(net)

    @property
    def rows_per_example(self) -> int:
        """Rows that the net's layers see for one row of the data set; consecutive."""
        return self.noise_draws * self.net.rows_per_example

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """What normaliser and adapter have to learn about the data before the first step."""
        facts: dict[str, Any] = {"unit": unit, "target_epsilon": target_epsilon, "delta": delta}
        chosen = [] if self.adapter is None else self.adapter.preparations(self, **facts)
        # In this order: the adapter's gradients are those of normalised data.
        return [*self.normaliser.preparations(**facts), *chosen]

    def forward_precision(self) -> AbstractContextManager:
        """Around forwards before the first step, as the fit's precision has it."""
        return forward_precision(self)

    def on_fit_start(self) -> None:
        if self.adapter is not None:
            self.adapter.begin_fit(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.adapter is not None:
            self.adapter.begin_step(self.global_step)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.adapter is not None:
            self.adapter.mask_gradients()

    def facts(self) -> dict[str, str | float | int]:
        """What results are listed by: the adapter and how many parameters it trains."""
        return {} if self.adapter is None else self.adapter.facts()

    def per_example_losses(self, batch: Batch) -> Tensor:
        """(B,) losses, each a function of its own example, its own noise and the weights only."""
        frame, inputs = self._inputs(batch)
        if self.condition_dropout:
            told = torch.rand(len(batch["values"]), device=self.device) >= self.condition_dropout  # (B,)
            inputs = _told_only(inputs, told)
        draws = self.noise_draws
        clean = (batch["values"] - frame.center) / frame.scale  # (B, L, C)
        clean, mask = _rows(clean, draws), _rows(scored_positions(batch), draws)  # (R, L, C)
        # Unscored positions may hold anything; they are noised like a residual of 0.
        clean = torch.where(mask, clean, 0.0)
        timesteps = draw_timesteps(
            len(batch["values"]), draws=draws, num_steps=self.schedule.num_steps, device=clean.device
        )  # (R,)
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=3)  # (R, 1, 1)
        noise = torch.randn_like(clean)  # (R, L, C)
        noisy = torch.where(_rows(batch["target"], draws), alpha * clean + sigma * noise, 0.0)  # (R, L, C)
        known = {name: _rows(value, draws) for name, value in inputs.items()}
        output = self._output(noisy, timesteps, known, of_days=self._of_days(batch, frame))  # (R, L, C)
        losses = per_example_loss(
            output,
            self.prediction.target(clean, noise, alpha=alpha, sigma=sigma),
            mask=mask,
            snr=(alpha / sigma).square().flatten(),
            prediction=self.prediction,
            min_snr_gamma=self.min_snr_gamma,
        )  # (R,)
        return losses.unflatten(0, (-1, draws)).mean(dim=1)  # (B,)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`losses` (R,), one per row that the layers see, those of an example alike; `loss`, their mean."""
        losses = self.per_example_losses(batch)  # (B,)
        loss = losses.mean()
        rows = len(batch["values"])
        self.log("nonprivate/train_loss", loss.detach(), batch_size=rows, prog_bar=True, sync_dist=True)
        return {"loss": loss, "losses": losses.repeat_interleave(self.rows_per_example)}

    @torch.no_grad()
    def expectation(self, batch: Batch) -> Tensor:
        """E[values | what is visible] in original units, (B, L, C): one evaluation at the noisiest step.

        There x_t carries no trace of x_0, so the best estimate of x_0 is its conditional mean. x_t is set to
        0, the middle of the noise, which makes the result deterministic. Visible positions keep their values.
        """
        frame, inputs = self._inputs(batch)
        noisy = torch.zeros_like(batch["values"])  # (B, L, C)
        timesteps = torch.full((len(noisy),), self.schedule.num_steps - 1, device=noisy.device)  # (B,)
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=3)
        output = self._output(noisy, timesteps, inputs, of_days=self._of_days(batch, frame))  # (B, L, C)
        clean = self.prediction.clean(output, noisy, alpha=alpha, sigma=sigma)  # (B, L, C)
        forecast = (frame.center + frame.scale * clean).clamp(*self.bounds)  # (B, L, C)
        return torch.where(visible_mask(batch), batch["values"], forecast)

    @torch.no_grad()
    def sample(
        self, batch: Batch, num_samples: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of the target positions; visible positions keep their values.

        Args:
            batch: B windows.
            num_samples: n; None for the module's own.
            generator: for reproducible draws; None for torch's global one.

        Returns:
            (B, n, L, C) in original units.
        """
        n = self.num_samples if num_samples is None else num_samples
        frame, inputs = self._inputs(batch)
        visible = visible_mask(batch)  # (B, L, C)
        chunk = max(1, self.max_sampling_rows // n)  # windows per call
        pieces = []
        for start in range(0, len(visible), chunk):
            part = slice(start, start + chunk)
            told = {name: value[part] for name, value in inputs.items()}
            known = self.net.encode(**told)
            of_days = self._of_days(batch, frame, part=part)
            # Without guidance the unconditional output has no weight, and isn't computed.
            nothing = torch.zeros(len(visible[part]), dtype=torch.bool, device=self.device)
            blank = self.net.encode(**_told_only(told, nothing)) if self.guidance_scale != 1 else None
            target = _rows(batch["target"][part], n)  # (b·n, L, C)
            noise = torch.randn(target.shape, generator=generator, device=self.device)  # (b·n, L, C)

            def denoise(
                noisy: Tensor,
                timesteps: Tensor,
                known: Any = known,
                blank: Any = blank,
                target: Tensor = target,
                of_days: _OfDays = of_days,
            ) -> Tensor:
                noisy = torch.where(target, noisy, 0.0)  # (b·n, L, C)
                output = self.net.denoise(noisy, timesteps[:1], known=known)  # (b·n, L, C)
                if blank is not None:
                    unconditional = self.net.denoise(noisy, timesteps[:1], known=blank)  # (b·n, L, C)
                    output = unconditional + self.guidance_scale * (output - unconditional)
                return output + of_days(noisy, *self.schedule.alpha_sigma(timesteps[:1], ndim=3))

            clean = self.sampler.sample(
                denoise, noise, schedule=self.schedule, prediction=self.prediction, generator=generator
            )  # (b·n, L, C)
            clean = clean.unflatten(0, (-1, n))  # (b, n, L, C)
            values = frame.center[part, None] + frame.scale[part, None] * clean  # (b, n, L, C)
            values = values.clamp(*self.bounds)
            pieces.append(torch.where(visible[part, None], batch["values"][part, None], values))
        return torch.cat(pieces)  # (B, n, L, C)

    def on_validation_start(self) -> None:
        self._start_errors()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Error of the conditional mean: deterministic, and one evaluation per window."""
        self._update_errors(batch, self.expectation(batch))

    def on_validation_epoch_end(self) -> None:
        # Raw statistics of rows that may be private: never part of a private artefact.
        self.log("nonprivate/val_mse", self._mse.compute())
        self.log("nonprivate/val_mae", self._mae.compute())

    def on_test_start(self) -> None:
        self._start_errors()
        self._crps, self._crps_sum = CRPS().to(self.device), CRPS().to(self.device)
        self._coverage = Coverage(_COVERAGE_LEVELS).to(self.device)
        self._r2 = R2(len(self._metric_std)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        samples = self.sample(batch)  # (B, n, L, C)
        mask = scored_positions(batch)  # (B, L, C)
        self._r2.update(*self._update_errors(batch, self._point_of(batch, samples)), mask=mask)
        self._crps.update(samples, batch["values"], mask=mask)
        self._coverage.update(samples, batch["values"], mask=mask)
        if mask.shape[2] > 1:
            summed, values, mask = sum_over_channels(samples, batch["values"], mask=mask)
            self._crps_sum.update(summed, values, mask=mask)

    def on_test_epoch_end(self) -> None:
        mse = self._mse.compute()
        self.log("test/mse", mse)
        self.log("test/rmse", mse.sqrt())
        self.log("test/mae", self._mae.compute())
        # Undefined where what is scored never changes.
        if not (r2 := self._r2.compute()).isnan():
            self.log("test/r2", r2)
        self.log("test/crps", self._crps.compute())
        for level, share in zip(_COVERAGE_LEVELS, self._coverage.compute(), strict=True):
            self.log(f"test/coverage_{level * 100:.0f}", share)
        if len(self._metric_mean) > 1:  # of one channel it is the CRPS
            score = self._crps_sum.compute()
            if score.isfinite():  # else no step has all channels to be predicted
                self.log("test/crps_sum", score)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`samples` (B, n, L, C), `quantiles` (B, Q, L, C), `point` (B, L, C), all in original units."""
        samples = self.sample(batch)  # (B, n, L, C)
        levels = samples.new_tensor(self.quantile_levels)
        quantiles = torch.quantile(samples, levels, dim=1).transpose(0, 1)  # (B, Q, L, C)
        return {"samples": samples, "quantiles": quantiles, "point": self._point_of(batch, samples)}

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """What every fit and test logs.

        `test/crps_sum` needs steps with all channels, `test/r2` values that vary: neither is a promise.
        """
        coverage = (f"test/coverage_{level * 100:.0f}" for level in _COVERAGE_LEVELS)
        return LoggedMetrics(
            train=frozenset({"nonprivate/train_loss"}),
            validation=frozenset({"nonprivate/val_mse", "nonprivate/val_mae"}),
            test=frozenset({"test/mse", "test/rmse", "test/mae", "test/crps", *coverage}),
        )

    def configure_callbacks(self) -> list[Callback]:
        """Every test stands beside its baselines, or its distances from real windows, and a picture."""
        return [PredictionReport(), SynthesisReport(), SelectionReport()]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    def _point_of(self, batch: Batch, samples: Tensor) -> Tensor:
        """The point forecast (B, L, C) that `point` names, of samples (B, n, L, C) of the batch."""
        if self.point == "denoiser":
            return self.expectation(batch)
        return samples.mean(dim=1) if self.point == "mean" else samples.median(dim=1).values

    def _inputs(self, batch: Batch) -> tuple[Frame, dict[str, Tensor]]:
        """The frame of each window, and what the net may know of it."""
        visible = visible_mask(batch)  # (B, L, C)
        frame = self.normaliser.frame(batch["values"], visible)
        context = torch.where(visible, (batch["values"] - frame.center) / frame.scale, 0.0)  # (B, L, C)
        return frame, {
            "context": context,
            "visible": visible.to(context.dtype),
            "target": batch["target"],
            "profile": frame.profile,
            "covariates": batch["covariates"],
        }

    def _output(
        self, noisy: Tensor, timesteps: Tensor, inputs: dict[str, Tensor], *, of_days: "_OfDays"
    ) -> Tensor:
        """The prediction (R, L, C) for rows at their timesteps (R,): the net's, and what the days say."""
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=3)  # (R, 1, 1)
        return self.net(noisy, timesteps, **inputs) + of_days(noisy, alpha, sigma)

    def _of_days(self, batch: Batch, frame: Frame, *, part: slice = slice(None)) -> "_OfDays":
        """(x_t, α, σ) → what the net's output is added to; x_t holds n copies of each window of `part`."""
        ensemble = self.ensemble
        if ensemble is None:
            return lambda noisy, alpha, sigma: 0.0
        of_windows = ensemble.of(
            batch["values"][part],
            visible_mask(batch)[part],
            frame=Frame(*(value[part] for value in frame)),
            target=batch["target"][part],
        )

        def output(noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            clean = ensemble.clean(noisy, of_windows, alpha=alpha, sigma=sigma)  # (R, L, C)
            return self.prediction.output(clean, noisy, alpha=alpha, sigma=sigma)

        return output

    def _start_errors(self) -> None:
        data = datamodule_of(self.trainer)
        if not provides(data, StandardisesErrors):
            raise ValueError(
                "the data module has no metric_mean or no metric_std, the constants (C,) that make errors "
                "comparable over channels: give it both, and hand it to the trainer as datamodule=."
            )
        self._metric_mean, self._metric_std = (
            torch.as_tensor(value, dtype=torch.float32, device=self.device)
            for value in (data.metric_mean, data.metric_std)
        )
        self._mse, self._mae = MSE().to(self.device), MAE().to(self.device)

    def _update_errors(self, batch: Batch, forecast: Tensor) -> tuple[Tensor, Tensor]:
        """Count a batch's errors on standardised values; return these, forecast and truth (B, L, C)."""
        forecast, values = ((x - self._metric_mean) / self._metric_std for x in (forecast, batch["values"]))
        for metric in (self._mse, self._mae):
            metric.update(forecast, values, mask=scored_positions(batch))
        return forecast, values


_OfDays = Callable[[Tensor, Tensor, Tensor], Tensor | float]

_LIVE_ARGUMENTS = [
    "net",
    "normaliser",
    "ensemble",
    "schedule",
    "prediction",
    "sampler",
    "optimizer",
    "lr_scheduler",
    "adapter",
]


def _accepted_only(config: dict[str, Any], part: object) -> dict[str, Any]:
    """The configuration of a part without what the data offered to whichever class takes it."""
    accepted = inspect.signature(type(part)).parameters
    kept = {name: value for name, value in config.get("init_args", {}).items() if name in accepted}
    return {**config, "init_args": kept}


def _told_only(inputs: dict[str, Tensor], told: Tensor) -> dict[str, Tensor]:
    """The net's inputs with every condition blanked in the windows where `told` (B,) is False.

    What is blank looks like nothing visible under covariates of 0, which no calendar has.
    """
    return {
        name: value if name == "target" else torch.where(told[:, None, None], value, 0.0)
        for name, value in inputs.items()
    }


def _rows(x: Tensor, repeats: int) -> Tensor:
    """Repeat each example in place: its rows stay consecutive, as per-unit clipping needs them."""
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=0)
