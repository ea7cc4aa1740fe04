"""A population of points in the plane, and a private crowd that votes for them."""

from pathlib import Path

import numpy as np
import torch

from lightning_dp.evolution.api import SampleAPI
from lightning_dp.evolution.embedding import Embedding
from lightning_dp.evolution.evolution import PrivateEvolution
from lightning_dp.evolution.generations import Generations
from lightning_dp.evolution.plan import VotesPrivacy
from lightning_dp.evolution.task import EvolutionTask, PrivateRows
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.privacy.units import PrivacyUnit

NUM_UNITS, DELTA, SIGMA = 400, 1e-3, 4.0
TARGET = np.array([3.0, -2.0])


class Identity(Embedding):
    """A sample is its own embedding."""

    def embed(self, samples: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(samples, dtype=np.float32)).flatten(1)


class Plane(SampleAPI):
    """Points drawn around the origin, varied by small steps."""

    def random(self, labels, *, rng):
        return rng.normal(0, 1, (len(labels), 2))

    def vary(self, samples, labels, *, degree, rng):
        return samples + degree * rng.normal(0, 1, samples.shape)

    def facts(self):
        return {"api": "Plane"}


class Crowd(EvolutionTask):
    """Two classes of points, around TARGET and around −TARGET; it knows what the ledger held at its reading.

    Args:
        rows_per_unit: rows that each unit has.
        ledger: looked at when rows are read.
    """

    dataset_id = "crowd"
    unit_name = "user"
    class_names = ("there", "opposite")
    sample_shape = (2,)

    def __init__(self, *, ledger: Ledger | None = None, rows_per_unit: int = 1) -> None:
        self.ledger = ledger or Ledger()
        self.rows_per_unit = rows_per_unit
        self.charged_at_reading: list[int] = []
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def read(self) -> PrivateRows:
        self.charged_at_reading.append(len(self.ledger.events("crowd", unit="user")))
        rows = NUM_UNITS * self.rows_per_unit
        labels = np.arange(rows) % 2
        noise = np.random.default_rng(1).normal(0, 0.3, (rows, 2))
        unit = PrivacyUnit(name="user", num_units=NUM_UNITS, description="somebody in the crowd")
        return PrivateRows(
            samples=noise + np.where(labels[:, None] == 0, TARGET, -TARGET),
            labels=labels,
            owners=np.arange(rows) // self.rows_per_unit,
            unit=unit,
        )

    def write(self, folder, samples, labels) -> None:
        np.savez(folder / "finished.npz", samples=samples, labels=labels)

    def facts(self):
        return {"task": "points"}


def run_of(
    folder: Path,
    *,
    task: Crowd | None = None,
    privacy: VotesPrivacy | None = None,
    api: SampleAPI | None = None,
    seed: int = 0,
    **options,
):
    options = {"iterations": 6, "population": 40, "num_samples": 50, **options}
    return PrivateEvolution(
        task or Crowd(),
        api=api or Plane(),
        embedding=Identity(),
        generations=Generations(**options),
        privacy=privacy or VotesPrivacy(noise_multiplier=SIGMA, delta=DELTA),
        folder=folder,
        seed=seed,
    )


def finished(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "finished.npz") as content:
        return content["samples"], content["labels"]
