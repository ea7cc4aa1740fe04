"""Drawing and varying by pipelines of diffusers: without a condition, by class, by text.

Images are (b, C, H, W) in [0, 1] as pipelines return them. Varying is SDEdit (Meng et al., arXiv 2108.01073),
image-to-image in diffusers' words: noise up to a share of the steps, the degree, and denoise from there.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image
from torch import Tensor

_NO_CLASS = 1000
"""What `DiTPipeline` takes for "no class", whatever the checkpoint says."""


class PipelineKind(ABC):
    """What one kind of pipeline makes of labels.

    Args:
        pipeline: on its device.
        num_steps: ≥ 1 of the scheduler, from full noise.
    """

    def __init__(self, pipeline: Any, *, num_steps: int) -> None:
        self.pipeline, self.num_steps = pipeline, num_steps

    @abstractmethod
    def draw(self, labels: np.ndarray, *, generator: torch.Generator) -> Tensor:
        """(b, C, H, W), one image per label."""

    @abstractmethod
    def vary(
        self, images: Tensor, labels: np.ndarray, *, degree: float, generator: torch.Generator
    ) -> Tensor:
        """(b, C, H, W) edited.

        Args:
            images: (b, C, H, W) in [0, 1], on the pipeline's device.
            labels: (b,).
            degree: in (0, 1], of the steps; one step at least.
            generator: on the pipeline's device.
        """


@final
class Unconditional(PipelineKind):
    """`DDPMPipeline` and `DDIMPipeline`: a `UNet2DModel` on pixels; labels are not used."""

    def draw(self, labels: np.ndarray, *, generator: torch.Generator) -> Tensor:
        return _images(
            self.pipeline(
                batch_size=len(labels),
                num_inference_steps=self.num_steps,
                generator=generator,
                output_type="np",
            )
        )

    @torch.no_grad()
    def vary(
        self, images: Tensor, labels: np.ndarray, *, degree: float, generator: torch.Generator
    ) -> Tensor:
        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            return self.pipeline.unet(noisy, time).sample

        edited = _edit(
            images * 2 - 1,
            predict,
            scheduler=self.pipeline.scheduler,
            num_steps=self.num_steps,
            degree=degree,
            generator=generator,
        )
        return (edited / 2 + 0.5).clamp(0, 1)


@final
class ByClass(PipelineKind):
    """`DiTPipeline`: latents by a transformer that knows ImageNet's classes.

    Args:
        classes: for each label the pipeline's class; a label of −1 is drawn without one.
        guidance: w ≥ 1, 1 for none.
    """

    def __init__(self, pipeline: Any, *, num_steps: int, classes: Sequence[int], guidance: float) -> None:
        super().__init__(pipeline, num_steps=num_steps)
        self._classes, self._guidance = (*classes, _NO_CLASS), guidance  # −1 is the last one

    def draw(self, labels: np.ndarray, *, generator: torch.Generator) -> Tensor:
        return _images(
            self.pipeline(
                class_labels=[self._classes[label] for label in labels],
                guidance_scale=self._guidance,
                num_inference_steps=self.num_steps,
                generator=generator,
                output_type="np",
            )
        )

    @torch.no_grad()
    def vary(
        self, images: Tensor, labels: np.ndarray, *, degree: float, generator: torch.Generator
    ) -> Tensor:
        vae, scale = self.pipeline.vae, self.pipeline.vae.config.scaling_factor
        own = torch.tensor([self._classes[label] for label in labels], device=images.device)
        none = torch.full_like(own, _NO_CLASS)

        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            def output(classes: Tensor) -> Tensor:
                times = time.to(noisy.device).expand(len(noisy))
                both = self.pipeline.transformer(noisy, timestep=times, class_labels=classes).sample
                return both[:, : noisy.shape[1]]  # a learned variance, which the pipeline drops too

            known = output(own)
            if self._guidance == 1:
                return known
            free = output(none)
            return free + self._guidance * (known - free)

        edited = _edit(
            vae.encode(images * 2 - 1).latent_dist.mode() * scale,
            predict,
            scheduler=self.pipeline.scheduler,
            num_steps=self.num_steps,
            degree=degree,
            generator=generator,
        )
        return (vae.decode(edited / scale).sample / 2 + 0.5).clamp(0, 1)


@final
class ByText(PipelineKind):
    """Any text-to-image pipeline that has an image-to-image one of the same parts.

    Args:
        prompts: for each label a text.
        guidance: w ≥ 1.
        size: H = W in pixels; None for the pipeline's own.

    Raises:
        ValueError: diffusers has no such pair for it.
    """

    def __init__(
        self, pipeline: Any, *, num_steps: int, prompts: Sequence[str], guidance: float, size: int | None
    ) -> None:
        try:
            super().__init__(AutoPipelineForText2Image.from_pipe(pipeline), num_steps=num_steps)
            self._editor: Any = AutoPipelineForImage2Image.from_pipe(pipeline)
        except ValueError as error:
            raise ValueError(
                f"DiffusersPipelineAPI.path holds a {type(pipeline).__name__}, neither a DDPMPipeline, "
                "DDIMPipeline or DiTPipeline, nor a text-to-image pipeline that diffusers has an "
                "image-to-image one for: choose one of those, such as Stable Diffusion."
            ) from error
        self._editor.set_progress_bar_config(disable=True)
        self.pipeline.set_progress_bar_config(disable=True)
        self._prompts, self._guidance, self._size = list(prompts), guidance, size

    def draw(self, labels: np.ndarray, *, generator: torch.Generator) -> Tensor:
        size = {} if self._size is None else {"height": self._size, "width": self._size}
        return _images(self.pipeline(**self._asked(labels, generator), **size))

    def vary(
        self, images: Tensor, labels: np.ndarray, *, degree: float, generator: torch.Generator
    ) -> Tensor:
        strength = min(1.0, max(degree, (1 + 1e-6) / self.num_steps))  # a step at least
        return _images(self._editor(**self._asked(labels, generator), image=images, strength=strength))

    def _asked(self, labels: np.ndarray, generator: torch.Generator) -> dict[str, Any]:
        return {
            "prompt": [self._prompts[label] for label in labels],  # −1 of the only one
            "num_inference_steps": self.num_steps,
            "guidance_scale": self._guidance,
            "generator": generator,
            "output_type": "np",
        }


def _images(made: Any) -> Tensor:
    """(b, C, H, W) out of a pipeline's (b, H, W, C) in [0, 1]."""
    return torch.from_numpy(np.moveaxis(np.asarray(made.images, dtype=np.float32), -1, 1).copy())


def _edit(
    clean: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
    *,
    scheduler: Any,
    num_steps: int,
    degree: float,
    generator: torch.Generator,
) -> Tensor:
    """Noise to the start of the last degree·num_steps steps, then those steps."""
    scheduler.set_timesteps(num_steps, device=clean.device)
    left_out = num_steps - max(1, round(degree * num_steps))
    begin = left_out * scheduler.order  # a step of order 2 has two times
    times = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):  # of those that count their steps
        scheduler.set_begin_index(begin)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    x = scheduler.add_noise(clean, noise, times[:1])
    # Schedulers without noise of their own take no generator.
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for time in times:
        output = predict(scheduler.scale_model_input(x, time), time)
        x = scheduler.step(output, time, x, **options).prev_sample
    return x
