"""Samples of a run as files that can be handed on: PNG folders or NPZ, with the privacy report beside."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_dp.images.data.dataset import to_bytes
from lightning_dp.images.run import image_data, image_sampler
from lightning_dp.privacy.report import read_privacy_report, replace_text, write_privacy_report
from lightning_dp.privacy.report.document import PrivacyReport
from lightning_dp.privacy.report.sections import headline_of
from lightning_dp.runs.abilities import SampleRequest
from lightning_dp.runs.load import load_run
from lightning_dp.runs.loaded_run import LoadedRun
from lightning_dp.tracking.cards import CARD, write_data_card
from lightning_dp.tracking.croissant import NAME as CROISSANT, file_object, image_set, write_croissant
from lightning_dp.tracking.sealed import seal_folder, sha256_of

Format = Literal["png", "npz"]


def balanced_labels(num_samples: int, *, num_classes: int) -> Tensor:
    """Each class as often as the others, but for the remainder; −1 throughout where there are no classes.

    How often a class occurs in the train split is private, so samples don't follow it.
    """
    if num_classes == 0:
        return torch.full((num_samples,), -1)
    return torch.arange(num_samples) % num_classes


def draw(
    module: Any,
    labels: Tensor,
    *,
    captions: Sequence[str] | None = None,
    guidance: float | None = None,
    seed: int | None = None,
) -> np.ndarray:
    """(n, C, S, S) uint8 samples, one per label.

    Args:
        module: a trained `ImageSampler`.
        labels, captions: (n,) as in `ImageSampler.sample`.
        guidance: w ≥ 1; None for the module's own.
        seed: None for fresh randomness.
    """
    generator = None
    if seed is not None:
        generator = torch.Generator(device=module.device).manual_seed(seed)
    return to_bytes(module.sample(labels, captions=captions, guidance_scale=guidance, generator=generator))


def sample_run(
    run: Path | LoadedRun,
    *,
    num_samples: int,
    out: Path,
    prompts: Sequence[str] = (),
    file_format: Format = "png",
    guidance: float | None = None,
    num_steps: int | None = None,
    rank: int | None = None,
    seed: int | None = None,
) -> Path:
    """Sample from a run folder and write the result; reads no image of the data.

    Args:
        run: a run whose module is an `ImageSampler`.
        num_samples: ≥ 1, spread over the classes, or the prompts.
        out: a folder that does not exist or is empty.
        prompts: texts to draw instead of the classes, if the run's net reads text. Their numbers are then
            the labels; about.json lists them.
        file_format: as in `export_images`.
        guidance: w ≥ 1; None for the run's own.
        num_steps: ≥ 1 steps of the sampler; None for the run's own.
        rank: of a run that trained a `DyLoRA`, which of its ranks to use; None for the largest.
        seed: None for fresh randomness.

    Returns:
        The folder.

    Raises:
        ValueError: no such run, its account can't be believed, or the folder is in use.
    """
    if num_samples < 1:
        raise ValueError(f"the number of samples is {num_samples}; it must be at least 1.")
    check_empty(out)
    run = run if isinstance(run, LoadedRun) else load_run(run)
    module = image_sampler(run)
    run.set_sampling(num_steps=num_steps, rank=rank)
    class_names = image_data(run).class_names[: module.num_classes]
    about = {
        "run": run.folder.name,
        "guidance": module.guidance_scale if guidance is None else guidance,
        "num_steps": module.sampler.num_steps,
        "seed": seed,
    }
    if rank is not None:
        about["rank"] = rank
    if prompts:
        class_names = tuple(str(number) for number in range(len(prompts)))
        labels = balanced_labels(num_samples, num_classes=len(prompts))
        captions = [prompts[number] for number in labels.tolist()]
        nothing = torch.full_like(labels, -1)
        images = draw(module, nothing, captions=captions, guidance=guidance, seed=seed)
        about["prompts"] = list(prompts)
    else:
        labels = balanced_labels(num_samples, num_classes=len(class_names))
        images = draw(module, labels, guidance=guidance, seed=seed)
    return export_images(
        images,
        labels=labels.numpy(),
        class_names=class_names,
        out=out,
        file_format=file_format,
        report=run.to_dict(),
        about=about,
    )


def write_images(module: Any, request: SampleRequest, *, run: LoadedRun) -> list[str]:
    """Write the folder that `lightning-dp sample` asks for, of a run whose module draws images."""
    if request.num is None:
        raise ValueError("--num is missing; say how many images to make.")
    given = request.options
    folder = sample_run(
        run,
        num_samples=request.num,
        prompts=given.get("prompt", ()),
        out=request.output,
        file_format=given.get("format", "png"),
        guidance=given.get("guidance"),
        num_steps=request.num_steps,
        rank=request.rank,
        seed=request.seed,
    )
    return _sealed(folder, request.num, run=run)


def write_finished(request: SampleRequest, *, run: LoadedRun, class_names: Sequence[str]) -> list[str]:
    """Write the folder that `lightning-dp sample` asks for, of images that a Private Evolution has made."""
    if request.seed is not None:
        raise ValueError(f"--seed is {request.seed}, but {run.folder} holds finished images: leave it out.")
    check_empty(request.output)
    images, labels = run.sample(request.num)
    folder = export_images(
        images,
        labels=labels,
        class_names=class_names,
        out=request.output,
        file_format=request.options.get("format", "png"),
        report=run.to_dict(),
        about={"run": run.folder.name},
    )
    return _sealed(folder, len(images), run=run)


def _sealed(folder: Path, number: int, *, run: LoadedRun) -> list[str]:
    seal_folder(folder, sign=run.account.signed, kind="samples")
    return [f"images   {folder} ({number})", f"privacy  {folder / 'privacy.json'}", run.account.sentence]


def export_images(
    images: np.ndarray,
    *,
    labels: np.ndarray,
    class_names: Sequence[str],
    out: Path,
    file_format: Format = "png",
    report: Mapping[str, Any] | None = None,
    about: dict[str, object] | None = None,
) -> Path:
    """Write images so that `ImageFolder` or `NPZ` read them back as they are.

    Args:
        images: (N, C, S, S) uint8.
        labels: (N,), −1 for none.
        class_names: folders of the PNGs; [] puts all into one.
        out: a folder that does not exist or is empty.
        file_format: `png`: OUT/train/CLASS/00000.png; `npz`: OUT/train.npz.
        report: the checked account of the run they came from, written beside them.
        about: what else there is to know, saved as about.json.

    Raises:
        ValueError: an unknown format, or the folder is in use.
    """
    if file_format not in ("png", "npz"):
        raise ValueError(f"the format is {file_format!r}; it must be png or npz.")
    check_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    if report:
        write_privacy_report(out, dict(report))  # before what it speaks of
    replace_text(
        out / "about.json",
        json.dumps({"images": len(images), "class_names": list(class_names), **(about or {})}, indent=2)
        + "\n",
    )
    pixels = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    if file_format == "npz":
        np.savez_compressed(out / "train.npz", images=pixels, labels=labels)
    else:
        digits = len(str(len(pixels) - 1))
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            # A class's name may be anything; a folder's may not.
            name = class_names[label].replace("/", "_") if label >= 0 else "unlabelled"
            folder = out / "train" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:0{digits}d}.png")
    if report:
        _describe(out, report, number=len(images), file_format=file_format)
    return out


def _describe(out: Path, report: Mapping[str, Any], *, number: int, file_format: Format) -> None:
    """The data card and the Croissant metadata of written images."""
    content = read_privacy_report(out)
    headline = headline_of(PrivacyReport.of(content))
    about = f"{number:,} synthetic images, drawn by lightning-dp from what it learnt of the private data."
    write_data_card(
        out / CARD,
        content,
        title=f"Synthetic images after {report.get('dataset', 'a private data set')}",
        about=about,
        files=() if file_format == "npz" else ("train/**/*.png",),
    )
    path = out / "train.npz"
    files = (
        [file_object(path.name, sha256=sha256_of(path), size=path.stat().st_size)]
        if file_format == "npz"
        else [image_set("train/*/*.png")]
    )
    write_croissant(
        out / CROISSANT,
        name="synthetic images",
        description=f"{about} {headline}.",
        distribution=files,
    )


def check_empty(out: Path) -> None:
    """Raise ValueError if something is there that would be mixed with what is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: choose another place for the samples.")
