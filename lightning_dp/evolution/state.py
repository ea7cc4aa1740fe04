"""What a run needs to go on after a crash: its last generation and its place in the ledger."""

import io
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lightning_dp.archives import load_npz, parse_json
from lightning_dp.data_files import write_atomically
from lightning_dp.evolution.population import Population

_NAME = "state.npz"


@dataclass(frozen=True, kw_only=True)
class State:
    """Written after the report that covers it; holds nothing that is not paid for, and no noise.

    Attributes:
        run: id in the ledger.
        ledger: (seq, hash) of the run's last entry when this was written.
        iteration: votes that `population` is the result of.
        settings: what the run was started with, as `settings_of` reads it.
        population: the last generation.
    """

    run: str
    ledger: tuple[int, str]
    iteration: int
    settings: dict[str, str]
    population: Population

    def save(self, folder: Path) -> None:
        """Replace the state as a whole."""
        facts = {
            "run": self.run,
            "ledger": list(self.ledger),
            "iteration": self.iteration,
            "settings": self.settings,
        }
        arrays = {name: value for name, value in vars(self.population).items() if value is not None}
        content = io.BytesIO()
        np.savez_compressed(content, facts=np.array(json.dumps(facts)), **arrays)
        write_atomically(content.getvalue(), path=folder / _NAME)


def has_state(folder: Path) -> bool:
    """Whether a run was started there."""
    return (folder / _NAME).is_file()


def read_state(folder: Path) -> State:
    """The state of a run folder.

    Raises:
        ValueError: there is none, or it was written before settings were kept.
    """
    if not has_state(folder):
        raise ValueError(
            f"{folder} has no {_NAME}, so there is nothing to resume: start the run without --resume"
        )
    content = load_npz(folder / _NAME, fix="put back a copy, or start a new run in another folder.")
    facts = parse_json(str(content.get("facts", "")), where=f"{folder / _NAME}, facts")
    names = [field.name for field in fields(Population)]
    arrays = {name: content[name] for name in names if name in content}
    if "settings" not in facts:
        raise ValueError(
            f"{folder / _NAME} holds no settings, as states of an earlier version, whose votes were counted "
            "in another way: start a new run in another folder."
        )
    seq, digest = facts["ledger"]
    return State(
        run=facts["run"],
        ledger=(int(seq), str(digest)),
        iteration=int(facts["iteration"]),
        settings=facts["settings"],
        population=Population(**arrays),
    )
