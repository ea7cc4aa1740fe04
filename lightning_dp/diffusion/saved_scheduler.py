"""The noise that a public checkpoint was trained with, as diffusers keeps it beside the weights."""

from typing import Any

import torch
from diffusers import DDPMScheduler

from lightning_dp.diffusion.prediction import Epsilon, Prediction, Sample, Velocity
from lightning_dp.diffusion.schedule import NoiseSchedule

_PREDICTIONS: tuple[type[Prediction], ...] = (Epsilon, Velocity, Sample)


def schedule_of(config: dict[str, Any]) -> tuple[NoiseSchedule, Prediction]:
    """What a scheduler's configuration says about training, whichever scheduler it is of.

    Args:
        config: scheduler_config.json; what it leaves out is at diffusers' default.

    Raises:
        ValueError: diffusers knows no such schedule, or a net that predicts so can't be trained here.
    """
    try:
        scheduler: Any = DDPMScheduler.from_config(config)
        betas = torch.as_tensor(scheduler.betas)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(
            f"the scheduler's configuration can't be followed ({' '.join(str(error).split())[:160]}): "
            "take the scheduler/ that belongs to the weights."
        ) from error
    name = scheduler.config.prediction_type
    for kind in _PREDICTIONS:
        if kind.diffusers_name == name:
            return NoiseSchedule(betas), kind()
    raise ValueError(
        f"the scheduler's prediction_type is {name!r}; it has to be one of "
        f"{', '.join(kind.diffusers_name for kind in _PREDICTIONS)}."
    )
