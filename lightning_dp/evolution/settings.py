"""What a run was started with, so that nobody resumes it as another run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from lightning_dp.evolution.generations import Generations

_FREE = ("config", "resume", "run", "privacy.ledger")
"""What may change between processes of one run. The ledger itself is checked by its entries."""


def settings_of(config: str, *, generations: Generations, seed: int) -> dict[str, str]:
    """Every setting of a run by its dotted name, as text.

    Args:
        config: the whole configuration as YAML; "" for a run that was built in Python, of which only what
            the run itself holds is known.
        generations, seed: of the run.
    """
    read = yaml.safe_load(config) or {}
    own: dict[str, Any] = {"generations": asdict(generations), "seed_everything": seed}
    flat = {name: str(value) for name, value in [*_flat(read), *_flat(own)]}
    return {
        name: value
        for name, value in flat.items()
        if not any(name == free or name.startswith(f"{free}.") for free in _FREE)
    }


def check_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise ValueError for the first setting in which a run differs from the one that it is to go on with."""
    for name in sorted({*before, *now}):
        old, new = before.get(name, "not set"), now.get(name, "not set")
        if old != new:
            raise ValueError(
                f"{name} is {new}, but the run was started with {old}: resume with the settings of its "
                "config.yaml, or start a new run in another folder."
            )


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """(dotted name, plain value) of all leaves."""
    if isinstance(value, Mapping):
        parts = [(f"{name}.{key}" if name else str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{name}.{number}", part) for number, part in enumerate(value)]
    else:
        return [(name, value)]
    return [leaf for inner, part in parts for leaf in _flat(part, inner)]
