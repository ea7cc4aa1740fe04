"""What a run folder's config.yaml says."""

from pathlib import Path
from typing import Any

import yaml


def read_run_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run was made by.

    Raises:
        ValueError: the folder holds none, or a damaged one.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{folder} is no run folder: config.yaml, its configuration, is missing; name a folder that "
            "'lightning-dp fit' or 'lightning-dp evolve' has finished."
        )
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}): put back a copy") from error
    return config if isinstance(config, dict) else {}
