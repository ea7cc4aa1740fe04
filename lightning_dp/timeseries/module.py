"""The LightningModule of the time-series half: a conditional diffusion model of the masked part of a window.

Whether a window is a forecast, an imputation or a synthesis is up to the batch's `target` mask.

Shapes: B windows, L steps, C channels, F covariates, K noise draws, n samples, R = B·K rows.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_dp.lightning_internals import datamodule_of
from lightning_dp.modules.condition import Condition, TrainingRows
from lightning_dp.modules.diffusion_module import DiffusionModule
from lightning_dp.modules.renamed import renamed
from lightning_dp.nets.denoising_net import DenoisingNet
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.runs.abilities import Forecaster, ForecastRequest, SampleRequest, SampleWriter
from lightning_dp.runs.loaded_run import LoadedRun
from lightning_dp.timeseries.batch import Batch
from lightning_dp.timeseries.day_ensemble import DayEnsemble, Ensemble
from lightning_dp.timeseries.metrics import scored_positions
from lightning_dp.timeseries.normalise import Frame, Normaliser, visible_mask
from lightning_dp.timeseries.prediction_report import PredictionReport
from lightning_dp.timeseries.synthesis_report import SynthesisReport
from lightning_dp.timeseries.window_scores import ALWAYS, WindowScores
from lightning_dp.tracking.logged_metrics import LoggedMetrics

if TYPE_CHECKING:
    from pandas import DataFrame

POINTS = ("denoiser", "mean", "median")


class TimeSeriesDiffusion(DiffusionModule, SampleWriter, Forecaster):
    """Diffusion over the target positions of a window, given everything else in it.

    Args:
        net: maps (noisy, timesteps, context, visible, profile, covariates) to the diffusion target, and has
            the same in two halves, `encode` and `denoise`, for sampling; see `SeriesDiT`. Its attribute
            `rows_per_example` says how many layer rows it makes of one.
        normaliser: the frame in which the series is diffused.
        base_denoiser: what the window's own days say, as the denoiser whose output `net` only corrects; None
            lets it learn everything.
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
        options: further ones, as of `DiffusionModule`.
        ensemble: the old name of `base_denoiser`.
    """

    live_arguments = ("normaliser", "ensemble")
    sample_options = ("samples", "start", "days", "frequency", "condition")

    def __init__(
        self,
        net: DenoisingNet,
        *,
        normaliser: Normaliser,
        base_denoiser: DayEnsemble | None = None,
        condition_dropout: float = 0.0,
        guidance_scale: float = 1.0,
        bounds: tuple[float, float] | None = None,
        num_samples: int = 50,
        point: str = "denoiser",
        quantile_levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
        ensemble: DayEnsemble | None = None,
        **options: Any,
    ) -> None:
        if guidance_scale != 1 and not condition_dropout:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but a net that was always told its condition can't do "
                "without: train with condition_dropout, .1 for instance."
            )
        inside = all(0 < level < 1 for level in quantile_levels)
        for field, value, good, rule in (
            ("num_samples", num_samples, num_samples >= 1, "at least 1: 20 to 100 are usual"),
            ("condition_dropout", condition_dropout, 0 <= condition_dropout < 1, "in [0, 1): .1 is usual"),
            ("bounds", bounds, bounds is None or bounds[0] < bounds[1], "the lower one first: (0, inf)"),
            ("point", point, point in POINTS, f"one of {', '.join(POINTS)}"),
            ("quantile_levels", quantile_levels, inside, "strictly between 0 and 1"),
        ):
            if not good:
                raise ValueError(f"{field} is {value!r}, but it must be {rule}.")
        super().__init__(
            net,
            base_denoiser=renamed(base_denoiser, ensemble, new="base_denoiser", old="ensemble", default=None),
            guidance_scale=guidance_scale,
            **options,
        )
        self._keep_accepted(normaliser=normaliser)
        self.normaliser = normaliser
        self.condition_dropout = condition_dropout
        self.bounds = (-float("inf"), float("inf")) if bounds is None else bounds
        self.num_samples = num_samples
        self.point = point
        self.quantile_levels = tuple(quantile_levels)

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """What the normaliser has to learn about the data, then what the others have."""
        facts: dict[str, Any] = {"unit": unit, "target_epsilon": target_epsilon, "delta": delta}
        # In this order: the adapter's gradients are those of normalised data.
        return [*self.normaliser.preparations(**facts), *super().preparations(**facts)]

    def training_rows(self, batch: Batch) -> TrainingRows:
        """The windows in their frames, of which the target positions are noised and scored."""
        frame, inputs = self._inputs(batch)
        if self.condition_dropout:
            told = torch.rand(len(batch["values"]), device=self.device) >= self.condition_dropout  # (B,)
            inputs = _told_only(inputs, told)
        draws = self.noise_draws
        clean = (batch["values"] - frame.center) / frame.scale  # (B, L, C)
        clean, mask = _rows(clean, draws), _rows(scored_positions(batch), draws)  # (R, L, C)
        known = {name: _rows(value, draws) for name, value in inputs.items()}
        return TrainingRows(
            # Unscored positions may hold anything; they are noised like a residual of 0.
            clean=torch.where(mask, clean, 0.0),
            condition=Condition(
                net=partial(self.net, **known), base=self._days(batch, frame), region=known["target"]
            ),
            mask=mask,
        )

    @torch.no_grad()
    def expectation(self, batch: Batch) -> Tensor:
        """E[values | what is visible] in original units, (B, L, C): one evaluation at the noisiest step.

        There x_t carries no trace of x_0, so the best estimate of x_0 is its conditional mean. x_t is set to
        0, the middle of the noise, which makes the result deterministic. Visible positions keep their values.
        """
        frame, inputs = self._inputs(batch)
        noisy = torch.zeros_like(batch["values"])  # (B, L, C)
        timesteps = torch.full((len(noisy),), self.schedule.num_steps - 1, device=noisy.device)  # (B,)
        condition = Condition(net=partial(self.net, **inputs), base=self._days(batch, frame))
        output = self.output(noisy, timesteps, condition)  # (B, L, C)
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=3)
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
        visible, target = visible_mask(batch), batch["target"]  # (B, L, C)

        def conditions(part: slice, guided: bool) -> tuple[Condition, Condition | None]:
            told = {name: value[part] for name, value in inputs.items()}
            shared: dict[str, Any] = {
                "base": self._days(batch, frame, part=part),
                "region": _rows(target[part], n),  # (b·n, L, C)
            }
            condition = Condition(net=self._encoded(told), **shared)
            if not guided:
                return condition, None
            nothing = torch.zeros(len(target[part]), dtype=torch.bool, device=self.device)
            return condition, Condition(net=self._encoded(_told_only(told, nothing)), **shared)

        pieces = []
        for part, clean in self.draws(
            len(target), conditions=conditions, shape=target.shape[1:], copies=n, generator=generator
        ):
            clean = clean.unflatten(0, (-1, n))  # (b, n, L, C)
            values = frame.center[part, None] + frame.scale[part, None] * clean  # (b, n, L, C)
            values = values.clamp(*self.bounds)
            pieces.append(torch.where(visible[part, None], batch["values"][part, None], values))
        return torch.cat(pieces)  # (B, n, L, C)

    def on_validation_start(self) -> None:
        self._scores = self._new_scores()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Error of the conditional mean: deterministic, and one evaluation per window."""
        self._scores.update_errors(batch, self.expectation(batch))

    def on_validation_epoch_end(self) -> None:
        # Raw statistics of rows that may be private: never part of a private artefact.
        self.log_dict({f"nonprivate/val_{name}": value for name, value in self._scores.errors().items()})

    def on_test_start(self) -> None:
        self._scores = self._new_scores()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        samples = self.sample(batch)  # (B, n, L, C)
        self._scores.update_errors(batch, self._point_of(batch, samples))
        self._scores.update_samples(batch, samples)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self._scores.all().items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`samples` (B, n, L, C), `quantiles` (B, Q, L, C), `point` (B, L, C), all in original units."""
        samples = self.sample(batch)  # (B, n, L, C)
        levels = samples.new_tensor(self.quantile_levels)
        quantiles = torch.quantile(samples, levels, dim=1).transpose(0, 1)  # (B, Q, L, C)
        return {"samples": samples, "quantiles": quantiles, "point": self._point_of(batch, samples)}

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """What every fit and test logs; of the test's scores those that are never undefined."""
        own = LoggedMetrics(
            validation=frozenset({"nonprivate/val_mse", "nonprivate/val_mae"}),
            test=frozenset(f"test/{name}" for name in ALWAYS),
        )
        return super().logged_metrics(data) | own

    def configure_callbacks(self) -> list[Callback]:
        """Every test stands beside its baselines, or its distances from real windows, and a picture."""
        return [PredictionReport(), SynthesisReport(), *super().configure_callbacks()]

    def write_samples(self, request: SampleRequest, *, run: LoadedRun) -> list[str]:
        """A table: synthetic series, or predictions of the data's test windows."""
        from lightning_dp.timeseries.table_samples import write_table  # late: with pandas and pyarrow

        return write_table(self, request, run=run)

    def write_forecast(self, request: ForecastRequest, *, output: Path, run: LoadedRun) -> list[str]:
        """A table of what follows each series' last reading, or of what is missing between readings."""
        from lightning_dp.timeseries.forecast_table import write_forecast  # late, as above

        return write_forecast(self, request, output=output, run=run)

    def forecast_frame(self, request: ForecastRequest, *, run: LoadedRun) -> "DataFrame":
        """The same as a frame."""
        from lightning_dp.timeseries.forecast_table import forecast_frame  # late, as above

        return forecast_frame(self, request, run=run)

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

    def _encoded(self, inputs: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The net with all that depends neither on x_t nor on t worked out; all rows are at the same time."""
        known = self.net.encode(**inputs)
        return lambda noisy, timesteps: self.net.denoise(noisy, timesteps[:1], known=known)

    def _days(self, batch: Batch, frame: Frame, *, part: slice = slice(None)) -> Ensemble | None:
        """What the base denoiser, where there is one, is told of the windows of `part`."""
        if self.base_denoiser is None:
            return None
        return self.base_denoiser.of(
            batch["values"][part],
            visible_mask(batch)[part],
            frame=Frame(*(value[part] for value in frame)),
            target=batch["target"][part],
        )

    def _new_scores(self) -> WindowScores:
        return WindowScores(datamodule_of(self.trainer), device=self.device)


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
