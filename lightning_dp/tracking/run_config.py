"""What a run folder's config.yaml says of its model."""

from pathlib import Path
from pydoc import locate
from typing import Any

import yaml


def read_run_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run was made by.

    Raises:
        ValueError: the folder holds none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is no run folder: it has no config.yaml.")
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def model_class(folder: Path) -> type:
    """The class of a run's model, by whichever of its names the configuration calls it.

    Raises:
        ValueError: the folder holds no configuration of a model, or nothing can be imported by that name.
    """
    name = (read_run_config(folder).get("model") or {}).get("class_path")
    found = locate(name) if isinstance(name, str) else None
    if not isinstance(found, type):
        raise ValueError(
            f"{folder / 'config.yaml'} names the model {name}, which can't be imported: install what defines "
            "it, or correct model.class_path."
        )
    return found
