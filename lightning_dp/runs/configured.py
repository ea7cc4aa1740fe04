"""The parts that a run's own files name. Every class of a run folder is found here and nowhere else."""

from collections.abc import Mapping
from pathlib import Path
from pydoc import locate
from typing import Any


def class_named(name: Any, *, key: str, path: Path) -> type:
    """The class of this name.

    Args:
        name: as the file has it.
        key: under which it does, such as `model.class_path`.
        path: of the file.

    Raises:
        ValueError: nothing can be imported by that name.
    """
    found = locate(name) if isinstance(name, str) else None
    if not isinstance(found, type):
        what = key.split(".")[0]
        raise ValueError(
            f"{path} names the {what} {name}, which can't be imported: install what defines it, or correct "
            f"{key}."
        )
    return found


def make_parts(
    config: Mapping[str, Any], kinds: Mapping[str, type], *, links: Mapping[str, str] | None = None
) -> Any:
    """Parts of a configuration, made and not opened: a namespace with one attribute for each.

    Args:
        config: of a run, whose classes were checked.
        kinds: base class of each part.
        links: argument of one part that another part is.

    Raises:
        ValueError: a part is missing, or its class takes no such arguments.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    for name, kind in kinds.items():
        parser.add_subclass_arguments(kind, name, required=True)
    for source, target in (links or {}).items():
        parser.link_arguments(source, target, apply_on="instantiate")
    try:
        parsed = parser.parse_object({name: config.get(name) for name in kinds})
        return parser.instantiate_classes(parsed)
    except ArgumentError as error:
        raise ValueError(f"the run's config.yaml can't be followed: {error}") from error
