"""Loading a pipeline folder of diffusers: safetensors, no code out of the folder, nothing downloaded."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
from diffusers.utils import logging

from lightning_dp.images.diffusers_files import load_weights, read_config
from lightning_dp.privacy.report import REPORT_NAME
from lightning_dp.strategies.device import command_device

_LIBRARIES = ("diffusers", "transformers")


def load_pipeline(folder: Path) -> Any:
    """The pipeline in fp32, on a GPU if there is one.

    Args:
        folder: as `save_pretrained` writes it, with model_index.json.

    Raises:
        ValueError: it is no such folder, lacks a file, holds pickled weights, asks for code of its own, or
            is an export of a private run.
    """
    if (folder / REPORT_NAME).is_file():
        raise ValueError(
            f"{folder} holds a {REPORT_NAME}: its weights were trained on private data, so votes alone would "
            "not cover what its samples say; give a public pipeline."
        )
    index = read_config(folder / "model_index.json")
    name = index.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(
            f"{folder / 'model_index.json'} has _class_name {name!r}, which is no pipeline of diffusers "
            f"{diffusers.__version__}: code of other people is not run; give a folder of one of its own."
        )
    parts = {part: load for part, load in index.items() if isinstance(load, list) and load[0] is not None}
    loaded = {}
    for part, (library, class_name) in parts.items():
        home = library if library in _LIBRARIES else f"diffusers.pipelines.{library}"
        model = getattr(importlib.import_module(home), class_name, None) if find_spec(home) else None
        if model is None:
            raise ValueError(
                f"{folder / 'model_index.json'} takes its {part}, a {class_name}, from {library!r}; what "
                f"{' and '.join(_LIBRARIES)} lack is not loaded, since other code is not run."
            )
        if (folder / part / "config.json").is_file():
            loaded[part] = load_weights(model, folder / part, safetensors=True).eval()
    logging.disable_progress_bar()  # for what is left: a scheduler and the like
    try:
        pipeline = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, **loaded
        )
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder} can't be loaded as a {name} ({' '.join(str(error).split())[:200]}): copy the folder "
            "again."
        ) from error
    finally:
        logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(command_device())
