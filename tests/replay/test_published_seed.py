"""Fits with the project's real generators and a seed that everybody knows, on D and without one of its units.

The harness hands every unit its own draws (`draws.py`), as a proof does: for each run on D there is an
equally likely one on D′ in which the units that both share draw the same. That is so while nobody knows the
draws. Here nothing is put in their place: every unit is in the batch, nothing is noised, and what is looked
at is whether the seed tells what the other units contribute.
"""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.privacy.noise import GaussianNoise
from lightning_dp.privacy.randomness import SecretRandomness
from replay.test_replay import households, series_module
from replay.toys import Line, Points

NUM_UNITS, CLIP = 12, 0.3


class NoNoise(GaussianNoise):
    """Adds none, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[torch.Tensor] = []

    def add_to(self, sums, *, scale):
        self.sums.append(sums.detach().double().flatten())
        return sums


def points() -> tuple[LightningModule, LightningDataModule]:
    return Line(), Points()


def users() -> tuple[LightningModule, LightningDataModule]:
    data = households(windows_per_user=2)
    data.setup("fit")
    channels = {"num_channels": data.num_channels, "num_covariates": data.num_covariates}
    return series_module(**channels), data


def first_sum(folder, make, *, without: int | None = None) -> torch.Tensor:
    """Σ clip(g) of the first step, for whoever seeds as the run folder says."""
    seed_everything(7, verbose=False)
    module, data = make()
    full = data.train_dataloader()
    kept = [number for number in range(NUM_UNITS) if number != without]

    class Subsets(type(full.dataset)):  # of its own class: others ask for that
        def __len__(self):
            return len(kept)

        def __getitem__(self, index):
            return full.dataset[kept[index]]

        if hasattr(full.dataset, "__getitems__"):

            def __getitems__(self, indices):
                return full.dataset.__getitems__([kept[index] for index in indices])

    view = Subsets.__new__(Subsets)
    view.__dict__ = full.dataset.__dict__
    loader = DataLoader(view, batch_size=4, collate_fn=full.collate_fn)
    data.train_dataloader = lambda: loader
    if hasattr(data, "privacy_unit"):
        unit = data.privacy_unit()
        data.privacy_unit = lambda: type(unit)(**{**vars(unit), "num_units": len(kept)})
    privacy = DifferentialPrivacy(
        noise_multiplier=4.0, delta=1e-2, expected_batch_size=len(kept), max_grad_norm=CLIP
    )
    privacy._noise = witness = NoNoise()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=1,
        limit_val_batches=0,
        enable_model_summary=False,
        callbacks=[privacy],
        **options,
    ).fit(module, datamodule=data)
    return torch.cat(witness.sums)


@pytest.mark.parametrize("make", [points, users])
def test_the_seed_does_not_tell_what_units_contribute(tmp_path, make):
    one, other = (first_sum(tmp_path, make) for _ in range(2))
    assert float((one - other).norm()) > CLIP, "two fits of D differ by more than a unit may"


@pytest.mark.parametrize("make", [points, users])
def test_planted_draws_by_the_published_seed(tmp_path, monkeypatch, make):
    """Without the entropy D repeats itself, and one unit moves the sum by more than its bound."""
    monkeypatch.setattr(SecretRandomness, "begin", lambda self: None)
    one, again = (first_sum(tmp_path, make) for _ in range(2))
    assert torch.equal(one, again)
    moved = float((one - first_sum(tmp_path, make, without=0)).norm())
    assert moved > 1.5 * CLIP
