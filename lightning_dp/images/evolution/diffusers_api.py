"""A public pipeline folder of diffusers as the model behind the API of Private Evolution."""

from collections.abc import Sequence
from pathlib import Path
from typing import final, get_args

import numpy as np
import torch
import torch.nn.functional as F

from lightning_dp.evolution.api import SampleAPI
from lightning_dp.images.data.dataset import to_bytes, to_floats
from lightning_dp.images.data.pixels import Mode
from lightning_dp.images.evolution.pipeline_folder import load_pipeline
from lightning_dp.images.evolution.pipeline_kinds import ByClass, ByText, PipelineKind, Unconditional

_NUM_CLASSES = 1000


@final
class DiffusersPipelineAPI(SampleAPI):
    """Random images by a call of the pipeline, variations by image-to-image with the degree as strength.

    `DDPMPipeline` and `DDIMPipeline` draw without a condition, `DiTPipeline` by class, text-to-image
    pipelines with an image-to-image one of the same parts (Stable Diffusion 1 to 3, XL, Flux and more) by
    a prompt for each class. Samples are kept at the pipeline's own size, so that variations lose nothing to
    the data's; they are brought to that where they are seen. A generation then takes population × 3·H·W
    bytes of memory, and as much of disk before compression.

    Args:
        path: the folder, as diffusers saves it: safetensors, no code of its own. Nothing is downloaded.
        public: in words, which public data its weights come from ("LAION, by the authors of Stable
            Diffusion"). Nothing here can check it, and no ε holds without it.
        size: S, of the data's images; None for the pipeline's own.
        mode: grey or rgb, the data's.
        prompts: for pipelines of text, one per class in the data's order; one for data without classes.
        classes: for pipelines of classes, the number of the pipeline's own class for each of the data's, in
            its order; () for data without classes.
        num_steps: ≥ 1 of the folder's scheduler from full noise; a variation takes its degree's share.
        guidance: w ≥ 1 of classifier-free guidance, where there is a condition; 7.5 is usual for text, 4 for
            `DiTPipeline`.
        pipeline_size: of what a text pipeline draws, in pixels; None for its own.
        images_at_once: ≥ 1, for memory.

    Raises:
        ValueError: a value out of range, a folder that can't be loaded, or a condition that does not fit it.
    """

    def __init__(
        self,
        path: str,
        *,
        public: str,
        size: int | None = None,
        mode: Mode = "rgb",
        prompts: Sequence[str] = (),
        classes: Sequence[int] = (),
        num_steps: int = 50,
        guidance: float = 7.5,
        pipeline_size: int | None = None,
        images_at_once: int = 16,
    ) -> None:
        for field, value, least in (
            ("size", size, 1),
            ("num_steps", num_steps, 1),
            ("guidance", guidance, 1),
            ("pipeline_size", pipeline_size, 8),
            ("images_at_once", images_at_once, 1),
        ):
            if value is not None and not value >= least:
                raise ValueError(f"DiffusersPipelineAPI.{field} is {value}; it must be at least {least}.")
        if mode not in get_args(Mode):
            raise ValueError(f"DiffusersPipelineAPI.mode is {mode!r}; it must be data.mode, grey or rgb.")
        if len(public.split()) < 2:
            raise ValueError(
                f"DiffusersPipelineAPI.public is {public!r}; say in words which public data the pipeline's "
                "weights come from, since of private weights no ε could be stated."
            )
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"DiffusersPipelineAPI.path={path} is not a folder: give a pipeline's own, with "
                "model_index.json in it."
            )
        self._kind = _kind_of(
            load_pipeline(folder),
            num_steps=num_steps,
            prompts=prompts,
            classes=classes,
            guidance=guidance,
            pipeline_size=pipeline_size,
        )
        self._name, self._public = folder.resolve().name, public
        self._size, self._mode, self._images_at_once = size, mode, images_at_once
        self._known = len(prompts) or len(classes)

    def random(self, labels: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        self._check(labels)
        generator = self._generator(rng)
        parts = np.split(labels, range(self._images_at_once, len(labels), self._images_at_once))
        return np.concatenate([_bytes(self._kind.draw(part, generator=generator)) for part in parts])

    def vary(
        self, samples: np.ndarray, labels: np.ndarray, *, degree: float, rng: np.random.Generator
    ) -> np.ndarray:
        self._check(labels)
        generator = self._generator(rng)
        if degree == 0:
            return samples
        parts = []
        for rows in np.split(
            np.arange(len(samples)), range(self._images_at_once, len(samples), self._images_at_once)
        ):
            images = (to_floats(samples[rows]) / 2 + 0.5).to(generator.device)
            edited = self._kind.vary(images, labels[rows], degree=degree, generator=generator)
            parts.append(_bytes(edited.cpu()))
        return np.concatenate(parts)

    def render(self, samples: np.ndarray) -> np.ndarray:
        """(n, C', H, W) of the pipeline → (n, C, S, S) of the data, uint8."""
        parts = np.split(samples, range(self._images_at_once, len(samples), self._images_at_once))
        return np.concatenate([self._rendered(part) for part in parts])

    def facts(self) -> dict[str, str | float | int]:
        return {"api": "DiffusersPipelineAPI", "pipeline": self._name, "pipeline_public": self._public}

    def _rendered(self, samples: np.ndarray) -> np.ndarray:
        images = to_floats(samples)  # (b, C', H, W)
        if self._mode == "grey" and images.shape[1] == 3:
            images = images.mean(dim=1, keepdim=True)
        if self._mode == "rgb":
            images = images.expand(-1, 3, -1, -1)
        if self._size not in (None, images.shape[-1]):
            images = F.interpolate(images, (self._size, self._size), mode="bicubic", antialias=True)
        return to_bytes(images.clamp(-1, 1))

    def _check(self, labels: np.ndarray) -> None:
        """Raise ValueError unless there is a condition for each label; a pipeline without one takes any."""
        if isinstance(self._kind, Unconditional):
            return
        field, of_none = ("prompts", 1) if isinstance(self._kind, ByText) else ("classes", 0)
        if labels.max() >= self._known or (labels.min() < 0 and self._known != of_none):
            raise ValueError(
                f"DiffusersPipelineAPI.{field} has {self._known} entries, but the data "
                + ("has no classes" if labels.max() < 0 else f"has a class number {labels.max()}")
                + f": give one for each of the data's classes, and {of_none or 'none'} where it has none."
            )

    def _generator(self, rng: np.random.Generator) -> torch.Generator:
        return torch.Generator(self._kind.pipeline.device).manual_seed(int(rng.integers(2**63)))


def _bytes(images: torch.Tensor) -> np.ndarray:
    return to_bytes(images * 2 - 1)


def _kind_of(
    pipeline: object,
    *,
    num_steps: int,
    prompts: Sequence[str],
    classes: Sequence[int],
    guidance: float,
    pipeline_size: int | None,
) -> PipelineKind:
    """The kind of a pipeline, with the condition that it takes."""
    name = type(pipeline).__name__
    given = {"prompts": bool(prompts), "classes": bool(classes), "pipeline_size": pipeline_size is not None}
    if name in ("DDPMPipeline", "DDIMPipeline"):
        _refuse(name, given, "it draws without a condition, at its own size")
        return Unconditional(pipeline, num_steps=num_steps)
    if name == "DiTPipeline":
        given["classes"] = False
        _refuse(name, given, "it draws by class, at its own size")
        wrong = [number for number in classes if not 0 <= number < _NUM_CLASSES]
        if wrong:
            raise ValueError(
                f"DiffusersPipelineAPI.classes has {wrong[0]}; a DiTPipeline knows ImageNet's classes, 0 to "
                f"{_NUM_CLASSES - 1}: id2label in its model_index.json names them."
            )
        return ByClass(pipeline, num_steps=num_steps, classes=classes, guidance=guidance)
    kind = ByText(pipeline, num_steps=num_steps, prompts=prompts, guidance=guidance, size=pipeline_size)
    given["prompts"] = given["pipeline_size"] = False
    _refuse(name, given, "it draws by text")
    if not prompts:
        raise ValueError(
            f"DiffusersPipelineAPI.prompts is empty, but a {name} draws by text: give one prompt per class, "
            'such as ["a photo of a cat"].'
        )
    return kind


def _refuse(name: str, given: dict[str, bool], why: str) -> None:
    for field, is_given in given.items():
        if is_given:
            raise ValueError(
                f"DiffusersPipelineAPI.{field} is given, but {name} needs none: {why}; leave it out."
            )
