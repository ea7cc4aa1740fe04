"""The release of scores and the training after it, recorded on D and replayed on its neighbours."""

import numpy as np
import pytest
import torch
from images.image_support import awake, npz_data, tiny_module, tiny_net, write_npz
from replay.harness import Replay, replay
from replay.neighbours import ADDED, HUGE, NOT_A_NUMBER, REMOVED, REPLACED
from replay.test_replay import CONTEXT, HORIZON, held, series_module
from replay.toys import NUM_UNITS, PRIVACY

from lightning_dp.adapters.saliency import Saliency, SaliencyLoRA
from lightning_dp.adapters.scores.grad_norm import GradNorm
from lightning_dp.adapters.scores.squared import Squared
from lightning_dp.adapters.scores.vote import Vote
from lightning_dp.timeseries.data.simulator import HouseholdLoad

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook"),
]


def of_images(
    folder, score, *, neighbours=(REMOVED, ADDED), users=None, ranks=1, precision="32-true", physical=None
) -> Replay:
    pictures = write_npz(folder / "pictures", train=(NUM_UNITS + 1) * (2 if users else 1), users=users)

    def module():
        adapter = SaliencyLoRA(ratio=0.5, score=score, noise_multiplier=3.0, noise_draws=2)
        return tiny_module(net=awake(tiny_net()), adapter=adapter)

    return replay(
        module,
        lambda: npz_data(pictures, **({"unit": "user", "images_per_user": 2} if users else {})),
        folder=folder,
        steps=3,
        num_units=NUM_UNITS,
        neighbours=list(neighbours),
        privacy={**PRIVACY, "physical_batch_size": physical},
        trainer={"limit_val_batches": 0, "precision": precision},
        ranks=ranks,
    )


@pytest.mark.parametrize(
    "score", [GradNorm(max_norm=0.1), Squared(max_norm=0.1), Vote()], ids=lambda score: type(score).__name__
)
def test_a_unit_moves_the_scores_by_at_most_the_sensitivity(tmp_path, score):
    found = held(of_images(tmp_path, score, neighbours=[REMOVED, ADDED, HUGE, NOT_A_NUMBER, REPLACED]))
    assert found.moved["one removed"] > 0.3, "it is near what was paid for, so that a larger one would show"


def test_in_half_precision_too(tmp_path):
    """Forwards in bf16, norms and their clipping not; physical batches of three units, cut elsewhere."""
    found = held(of_images(tmp_path, GradNorm(max_norm=0.1), precision="bf16-mixed", physical=6))
    assert found.moved["one removed"] > 0.3


def test_a_user_is_one_unit(tmp_path):
    held(of_images(tmp_path, GradNorm(max_norm=0.1), users=NUM_UNITS + 1, physical=10))


def test_two_ranks(tmp_path):
    """The first one scores, once; both train what it chose."""
    found = held(of_images(tmp_path, GradNorm(max_norm=0.05), neighbours=[REMOVED], ranks=2))
    assert 0.9 < found.moved["one removed"] <= 1 + 1e-6


def test_households(tmp_path):
    def module():
        adapter = SaliencyLoRA(ratio=0.5, noise_multiplier=3.0)
        module = series_module(num_channels=1, num_covariates=7)
        return type(module)(
            module.net, normaliser=module.normaliser, schedule=module.schedule, adapter=adapter
        )

    found = replay(
        module,
        lambda: HouseholdLoad(18, num_days=4, context_length=CONTEXT, horizon=HORIZON, windows_per_user=2),
        folder=tmp_path,
        steps=3,
        num_units=NUM_UNITS,
        neighbours=[REMOVED],
        privacy=PRIVACY,
        trainer={"limit_val_batches": 0},
    )
    held(found)


def test_a_choice_by_scores_without_noise_is_caught(tmp_path, monkeypatch):
    """Planted: what is published is what the release answered, but the choice was made before noise."""
    own = Saliency.values

    def peeks(self, batches) -> np.ndarray:
        self.raw = own(self, batches)
        return self.raw

    def choose(self, answer: np.ndarray) -> None:
        self._adapter.selection.choose(torch.from_numpy(self.raw.sum(axis=0)))

    monkeypatch.setattr(Saliency, "values", peeks)
    monkeypatch.setattr(Saliency, "apply", choose)
    assert "seen" in of_images(tmp_path, GradNorm(max_norm=0.1), neighbours=[REMOVED]).kinds


def test_scores_that_each_of_two_ranks_adds_are_caught(tmp_path, monkeypatch):
    """Planted: the published code's defect, selection repeated on each device and the noise not."""
    own = SaliencyLoRA.norms
    monkeypatch.setattr(SaliencyLoRA, "norms", lambda *of, **more: torch.cat(2 * [own(*of, **more)]))
    found = of_images(tmp_path, GradNorm(max_norm=0.05), neighbours=[REMOVED])
    assert "sensitivity" in found.kinds
    assert found.moved["one removed"] > 1.9
