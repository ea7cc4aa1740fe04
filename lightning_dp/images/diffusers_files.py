"""Reading the parts of a checkpoint folder in diffusers' layout; nothing is ever downloaded."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of the folder.

    Raises:
        ValueError: it is missing or no JSON object.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: give a whole checkpoint folder, as diffusers' save_pretrained writes it."
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): copy the folder again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} and no settings: copy the folder again.")
    return content


def load_weights(kind: Any, folder: Path, *, safetensors: bool | None = None) -> Any:
    """A model of diffusers or transformers with all of its weights, in fp32, on the CPU.

    Args:
        kind: its class.
        folder: with config.json and the weights.
        safetensors: whether they have to be safetensors; None takes older files where there are no others.

    Raises:
        ValueError: files are missing, damaged or don't fit; a part that is missing is not made up.
    """
    read_config(folder / "config.json")
    try:
        model, found = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, use_safetensors=safetensors
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the weights of {folder} can't be loaded ({' '.join(str(error).split())[:200]}): copy the "
            "folder again."
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"the weights of {folder} lack {missing[0]} ({len(missing)} of a {kind.__name__}): copy the "
            "folder again."
        )
    return model.float()
