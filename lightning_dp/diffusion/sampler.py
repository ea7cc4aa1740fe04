"""One sampling loop over any of diffusers' schedulers."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin
from torch import Tensor

from lightning_dp.diffusion.prediction import Prediction
from lightning_dp.diffusion.schedule import NoiseSchedule


class Sampler:
    """Draws samples by running a diffusers scheduler backwards.

    Args:
        scheduler: an instance, for its class and its own options (solver order, …). Its β's, prediction type
            and timestep spacing are replaced by those of the model, and clipping to [−1, 1] is switched off:
            series aren't images. None for DPM-Solver++ (multistep, second order).
        num_steps: network evaluations, roughly (second-order schedulers such as Heun take more).
        timestep_spacing: diffusers' name; "trailing" starts at the noisiest step, as training ended there.
        eta: stochasticity of schedulers that have it (DDIM: 0 deterministic, 1 ancestral).
    """

    def __init__(
        self,
        scheduler: SchedulerMixin | None = None,
        *,
        num_steps: int = 6,
        timestep_spacing: str = "trailing",
        eta: float = 0.0,
    ) -> None:
        # Any: diffusers' own base class declares none of what its schedulers share.
        self.scheduler: Any = scheduler or DPMSolverMultistepScheduler()
        self.num_steps = num_steps
        self.timestep_spacing = timestep_spacing
        self.eta = eta

    @property
    def num_steps(self) -> int:
        """Steps of one draw; may be set to another number after training."""
        return self._num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}, but sampling takes at least one: 5 to 50 are usual.")
        self._num_steps = num_steps

    @torch.no_grad()
    def sample(
        self,
        denoise_fn: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        *,
        schedule: NoiseSchedule,
        prediction: Prediction,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """From noise to samples.

        Args:
            denoise_fn: (x_t (B, …), timesteps (B,)) → the network's output (B, …).
            noise: (B, …) standard normal.
            schedule: what the network was trained with.
            prediction: what the network predicts.
            generator: for schedulers that add noise on the way.

        Returns:
            (B, …) samples of x_0, finite or not as the network made them.
        """
        # A fresh one for every call: multistep schedulers remember earlier outputs.
        scheduler = self._fresh(schedule, prediction)
        scheduler.set_timesteps(self.num_steps, device=noise.device)
        if hasattr(scheduler, "set_begin_index"):
            # Else the start is looked up by timestep, which goes wrong where rounding made two of them equal.
            scheduler.set_begin_index(0)
        accepted = inspect.signature(scheduler.step).parameters
        options = {"eta": self.eta, "generator": generator}
        options = {name: value for name, value in options.items() if name in accepted}
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            output = denoise_fn(scaled, t.expand(len(x)))
            x = scheduler.step(output, t, x, return_dict=False, **options)[0]
        return x

    def _fresh(self, schedule: NoiseSchedule, prediction: Prediction) -> Any:
        overrides = {
            "num_train_timesteps": schedule.num_steps,
            "trained_betas": schedule.betas.tolist(),
            "prediction_type": prediction.diffusers_name,
            "timestep_spacing": self.timestep_spacing,
            "clip_sample": False,
        }
        known = self.scheduler.config
        missing = [name for name in ("trained_betas", "prediction_type") if name not in known]
        if missing:
            raise ValueError(
                f"scheduler is {type(self.scheduler).__name__}, which has no {' or '.join(missing)}: it "
                "can't follow the model's noise. Choose one that has, such as DDIMScheduler."
            )
        # As keywords: from_config ignores entries of a config whose option was left at its default.
        overrides = {name: value for name, value in overrides.items() if name in known}
        return type(self.scheduler).from_config(known, **overrides)
