"""A latent diffusion model that was trained on public images, as the model behind the API."""

from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_dp.evolution.api import SampleAPI
from lightning_dp.images.checkpoint import read_checkpoint
from lightning_dp.images.data.dataset import to_bytes, to_floats
from lightning_dp.images.run import load_module
from lightning_dp.tracking.layout import CHECKPOINT


@final
class DiffusionAPI(SampleAPI):
    """Samples of a public run; varied as in SDEdit (Meng et al., arXiv 2108.01073): noised in part, denoised.

    Args:
        run: folder of a fit of `LatentDiffusion` on public data. A model of the private data's classes is
            asked for each class; one of no classes for anything.
        num_steps: ≥ 1, network evaluations from full noise; a variation takes its degree's share of them.
        images_at_once: ≥ 1, for memory.

    Raises:
        ValueError: no such run, or its weights have seen data that nobody says is public.
    """

    def __init__(self, run: str, *, num_steps: int = 15, images_at_once: int = 500) -> None:
        for field, value in (("num_steps", num_steps), ("images_at_once", images_at_once)):
            if value < 1:
                raise ValueError(f"DiffusionAPI.{field} is {value}; it must be at least 1.")
        _check_public(Path(run))
        self._module = load_module(Path(run))
        self._run = Path(run).name
        self._num_steps, self._images_at_once = num_steps, images_at_once

    def random(self, labels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        return to_bytes(self._module.sample(self._known(labels), generator=self._generator(rng)))

    @torch.no_grad()
    def vary(
        self, samples: np.ndarray, labels: np.ndarray, *, degree: float, rng: np.random.Generator
    ) -> np.ndarray:
        generator, module = self._generator(rng), self._module
        parts = []
        for rows in torch.arange(len(samples)).split(self._images_at_once):
            images = to_floats(samples[rows.numpy()]).to(module.device)
            latents = module.autoencoder.encode(images)  # (b, c, s, s)
            edited = self._edit(latents, self._known(labels)[rows], degree=degree, generator=generator)
            parts.append(to_bytes(module.autoencoder.decode(edited).clamp(-1, 1)))
        return np.concatenate(parts)

    def facts(self) -> dict[str, str | float | int]:
        return {"api": "DiffusionAPI", "public_run": self._run}

    def _edit(self, clean: Tensor, labels: Tensor, *, degree: float, generator: torch.Generator) -> Tensor:
        """Noise to timestep degree·(last one), then back by DDIM (arXiv 2010.02502, eq. 12 with η = 0)."""
        schedule, prediction = self._module.schedule, self._module.prediction
        start = round(degree * (schedule.num_steps - 1))
        steps = max(1, round(degree * self._num_steps))
        times = torch.linspace(start, 0, steps + 1).round().long()[:-1].to(clean.device)  # the noisiest first
        alpha, sigma = schedule.alpha_sigma(times, ndim=1)  # (steps,)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        x = alpha[0] * clean + sigma[0] * noise  # (b, c, s, s)
        for number, time in enumerate(times):
            output = self._module.denoise(x, time.expand(len(x)), condition={"labels": labels})
            estimate = prediction.clean(output, x, alpha=alpha[number], sigma=sigma[number])
            if number + 1 == len(times):
                return estimate
            noise = (x - alpha[number] * estimate) / sigma[number]
            x = alpha[number + 1] * estimate + sigma[number + 1] * noise
        raise AssertionError("there is at least one step")

    def _known(self, labels: np.ndarray) -> Tensor:
        """The labels as the net knows them: none, where it knows no classes."""
        known = torch.from_numpy(labels if self._module.net.num_classes else np.full_like(labels, -1))
        return known.to(self._module.device)

    def _generator(self, rng: np.random.Generator) -> torch.Generator:
        return torch.Generator(self._module.device).manual_seed(int(rng.integers(2**63)))


def _check_public(run: Path) -> None:
    """Raise ValueError unless every data set that the run's weights have seen is public."""
    states = read_checkpoint(run / CHECKPOINT).get("callbacks", {})
    origins = states.get("WeightsOrigin", {}).get("origins", [])
    seen = [origin["dataset"] for origin in origins if not (origin["public"] or origin["statement"])]
    if seen or not origins:
        raise ValueError(
            f"the weights of {run} have seen {seen[0] if seen else 'data that nobody recorded'}, which "
            "nobody says is public, so no ε could be stated: give a run on public data."
        )
