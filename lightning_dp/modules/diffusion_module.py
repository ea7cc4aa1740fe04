"""A conditional diffusion model as a LightningModule, whatever kind of data it is of.

Ordinary Lightning code: training_step returns per-row losses and their mean, and a callback makes it
private. A half, or a kind of data of one's own, says what its clean data is and what it is conditioned on;
`timeseries/module.py` and `images/module.py` are the two in this package.

Shapes: B examples, K noise draws, R = B·K rows, then the dimensions of one example.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_dp.adapters.adapter import Adapter
from lightning_dp.adapters.dylora import use_rank
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.precision import forward_precision
from lightning_dp.callbacks.selection_report import SelectionReport
from lightning_dp.diffusion.base_denoiser import BaseDenoiser, with_current_names
from lightning_dp.diffusion.objective import draw_timesteps, per_example_loss
from lightning_dp.diffusion.prediction import Prediction, Velocity
from lightning_dp.diffusion.sampler import Sampler
from lightning_dp.diffusion.schedule import Cosine, NoiseSchedule
from lightning_dp.lightning_internals import is_configured_by_cli
from lightning_dp.modules.condition import Condition, TrainingRows
from lightning_dp.privacy.preparation import Preparation
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.runs.abilities import RunModule
from lightning_dp.tracking.logged_metrics import LoggedMetrics


class DiffusionModule(LightningModule, RunModule, ABC):
    """Schedule, prediction, losses, optimizer, adapter, guidance and sampling of a diffusion model.

    A subclass says what it is about: `training_rows` turns a batch into rows to be noised, and a method of
    its own turns `draws` into samples. It takes the arguments it needs and hands them on.

    Guarantee: the loss of an example is a function of that example, its own noise and the weights, if
    `training_rows` and the network keep rows apart.

    Args:
        net: the network; its attribute `rows_per_example` says how many layer rows it makes of one.
        base_denoiser: a denoiser in closed form, whose output `net` only corrects; None lets the network
            learn everything.
        schedule: noise levels; None for `Cosine()`.
        prediction: what `net` predicts; None for `Velocity()`.
        sampler: how samples are drawn; None for `Sampler()`.
        noise_draws: K ≥ 1 timesteps and noises per example, in one gradient of that example (DPDM's noise
            multiplicity, arXiv 2210.09929).
        min_snr_gamma: γ of min-SNR weighting, or None.
        guidance_scale: w of classifier-free guidance while sampling (arXiv 2207.12598), 1 for none.
        max_sampling_rows: ≥ 1 rows per call of the net while sampling, for memory.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler that is stepped once per optimizer step, or None.
        adapter: which parameters of `net` train; None for all.

    Raises:
        ValueError: a value is out of range.
    """

    live_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of a subclass's own that are live objects in Python, so that no checkpoint can hold them."""

    def __init__(
        self,
        net: nn.Module,
        *,
        base_denoiser: BaseDenoiser | None = None,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        sampler: Sampler | None = None,
        noise_draws: int = 1,
        min_snr_gamma: float | None = None,
        guidance_scale: float = 1.0,
        max_sampling_rows: int = 1024,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        for field, value, usual in (
            ("noise_draws", noise_draws, "1 to 16 are usual"),
            ("max_sampling_rows", max_sampling_rows, "as many as fit memory"),
        ):
            if value < 1:
                raise ValueError(f"{field} is {value}, but it must be at least 1: {usual}.")
        # Under LightningCLI this saves the configuration, and load_from_checkpoint needs nothing else. In
        # Python these arguments are live objects that don't belong in a checkpoint; the caller hands them
        # over again: load_from_checkpoint(path, net=…, …).
        self.save_hyperparameters(
            ignore=None if is_configured_by_cli() else [*_LIVE_ARGUMENTS, *self.live_arguments]
        )
        self._keep_accepted(net=net)
        self.net: Any = net
        self.base_denoiser: Any = base_denoiser
        self.schedule = Cosine() if schedule is None else schedule
        self.prediction = prediction or Velocity()
        self.sampler = sampler or Sampler()
        self.noise_draws = noise_draws
        self.min_snr_gamma = min_snr_gamma
        self.guidance_scale = guidance_scale
        self.max_sampling_rows = max_sampling_rows
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.adapter = adapter
        if adapter is not None:
            adapter.apply(net)

    def _keep_accepted(self, **parts: object) -> None:
        """Keep of the parts' saved configuration what their classes take, not all that the data offered."""
        if not is_configured_by_cli():
            return
        for name, part in parts.items():
            accepted = inspect.signature(type(part)).parameters
            given = self.hparams[name]
            kept = {key: value for key, value in given.get("init_args", {}).items() if key in accepted}
            self.hparams[name] = {**given, "init_args": kept}

    # what a private fit asks for

    @property
    def rows_per_example(self) -> int:
        """Rows that the net's layers see for one row of the data set; consecutive."""
        return self.noise_draws * self.net.rows_per_example

    def preparations(
        self, *, unit: PrivacyUnit, target_epsilon: float | None, delta: float
    ) -> list[Preparation]:
        """What base denoiser and adapter have to learn about the data before the first step."""
        parts = [part for part in (self.base_denoiser, self.adapter) if part is not None]
        facts: dict[str, Any] = {"unit": unit, "target_epsilon": target_epsilon, "delta": delta}
        return [one for part in parts for one in part.preparations(self, **facts)]

    def forward_precision(self) -> AbstractContextManager:
        """Around forwards before the first step, as the fit's precision has it."""
        return forward_precision(self)

    def on_fit_start(self) -> None:
        if DifferentialPrivacy.of(self.trainer) is None:
            self.begin_fit_without_privacy()
        if self.adapter is not None:
            self.adapter.begin_fit(self)

    def begin_fit_without_privacy(self) -> None:
        """Learn exactly what a private fit would learn by releases; nothing, for most."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.adapter is not None:
            self.adapter.begin_step(self.global_step)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.adapter is not None:
            self.adapter.mask_gradients()

    def facts(self) -> dict[str, str | float | int]:
        """What results are listed by: the adapter and how many parameters it trains."""
        return {} if self.adapter is None else self.adapter.facts()

    # training

    @abstractmethod
    def training_rows(self, batch: Any) -> TrainingRows:
        """The rows that a batch is trained as, `noise_draws` for each example.

        Whatever is drawn for them here (a dropped condition, a variant of an image) is drawn before
        timesteps and noise.
        """

    def per_example_losses(self, batch: Any) -> Tensor:
        """(B,) losses, each a function of its own example, its own noise and the weights only."""
        rows = self.training_rows(batch)
        clean, draws = rows.clean, self.noise_draws  # (R, …)
        timesteps = draw_timesteps(
            len(clean) // draws, draws=draws, num_steps=self.schedule.num_steps, device=clean.device
        )  # (R,)
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=clean.ndim)  # (R, 1, …)
        noise = torch.randn_like(clean)  # (R, …)
        losses = per_example_loss(
            self.output(alpha * clean + sigma * noise, timesteps, rows.condition),
            self.prediction.target(clean, noise, alpha=alpha, sigma=sigma),
            mask=torch.ones_like(clean) if rows.mask is None else rows.mask,
            snr=(alpha / sigma).square().flatten(),
            prediction=self.prediction,
            min_snr_gamma=self.min_snr_gamma,
        )  # (R,)
        return losses.unflatten(0, (-1, draws)).mean(dim=1)  # (B,)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """`losses` (R,), one per row that the layers see, those of an example alike; `loss`, their mean."""
        losses = self.per_example_losses(batch)  # (B,)
        loss, rows = losses.mean(), len(losses)
        self.log("nonprivate/train_loss", loss.detach(), batch_size=rows, prog_bar=True, sync_dist=True)
        return {"loss": loss, "losses": losses.repeat_interleave(self.rows_per_example)}

    def logged_metrics(self, data: Any) -> LoggedMetrics:
        """What every fit logs; a subclass adds what its test logs."""
        return LoggedMetrics(train=frozenset({"nonprivate/train_loss"}))

    def configure_callbacks(self) -> list[Callback]:
        """What an adapter chose stands in the run folder."""
        return [SelectionReport()]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # denoising and sampling

    def output(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The prediction (R, …) of x_t (R, …) at timesteps (R,) or (1,): net and base denoiser together."""
        if condition.region is not None:
            noisy = torch.where(condition.region, noisy, 0.0)  # (R, …)
        output = condition.net(noisy, timesteps)  # (R, …)
        if self.base_denoiser is None:
            return output
        alpha, sigma = self.schedule.alpha_sigma(timesteps, ndim=noisy.ndim)  # (R or 1, 1, …)
        clean = self.base_denoiser.clean(noisy, condition.base, alpha=alpha, sigma=sigma)  # (R, …)
        return output + self.prediction.output(clean, noisy, alpha=alpha, sigma=sigma)

    def guided(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        *,
        condition: Condition,
        unconditional: Condition | None,
        guidance_scale: float,
    ) -> Tensor:
        """The prediction under classifier-free guidance: unconditional + w·(conditional − unconditional).

        Args:
            noisy: (R, …).
            timesteps: (R,) or (1,).
            condition: of the rows.
            unconditional: of the same rows, told nothing; None for no guidance.
            guidance_scale: w of arXiv 2207.12598, eq. 6, counted so that 1 is no guidance.
        """
        output = self.output(noisy, timesteps, condition)  # (R, …)
        if unconditional is None or guidance_scale == 1:
            return output
        free = self.output(noisy, timesteps, unconditional)  # (R, …)
        return free + guidance_scale * (output - free)

    def draws(
        self,
        num_examples: int,
        *,
        conditions: Callable[[slice, bool], "tuple[Condition, Condition | None]"],
        shape: tuple[int, ...],
        copies: int = 1,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Samples of x_0, as many examples at a time as `max_sampling_rows` allows.

        Args:
            num_examples: B.
            conditions: (which examples, whether guidance is on) → the conditions of their rows, `copies`
                consecutive ones of each, and the unconditional ones where guidance is on.
            shape: (…) of one example.
            copies: n ≥ 1 samples of each example.
            guidance_scale: w; None for the module's own.
            generator: for reproducible draws, on the module's device; None for torch's global one.

        Yields:
            Which examples, and their samples (b·n, …).
        """
        weight = self.guidance_scale if guidance_scale is None else guidance_scale
        at_once = max(1, self.max_sampling_rows // copies)
        for start in range(0, num_examples, at_once):
            part = slice(start, min(start + at_once, num_examples))
            condition, unconditional = conditions(part, weight != 1)
            rows = (part.stop - start) * copies
            noise = torch.randn((rows, *shape), generator=generator, device=self.device)  # (b·n, …)
            denoise = partial(
                self.guided, condition=condition, unconditional=unconditional, guidance_scale=weight
            )
            yield (
                part,
                self.sampler.sample(
                    denoise,
                    noise,
                    schedule=self.schedule,
                    prediction=self.prediction,
                    generator=generator,
                ),
            )

    def set_sampling(self, *, num_steps: int | None, rank: int | None) -> None:
        if num_steps is not None:
            self.sampler.num_steps = num_steps
        if rank is not None:
            use_rank(self.adapter, rank)

    # checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the names of earlier versions for those of this one."""
        # In place: the state's metadata says what the weights saw.
        state = checkpoint["state_dict"]
        current = with_current_names(state)
        state.clear()
        state.update(current)


_LIVE_ARGUMENTS = (
    "net",
    "base_denoiser",
    "schedule",
    "prediction",
    "sampler",
    "optimizer",
    "lr_scheduler",
    "adapter",
)
