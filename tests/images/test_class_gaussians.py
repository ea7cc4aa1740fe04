"""The linear denoiser of normal classes, its two releases, and what a fit makes of them."""

import json
import math

import numpy as np
import pytest
import torch
from images.image_support import CLASSES, awake, npz_data, tiny_module, tiny_net, write_npz
from lightning import Trainer
from replay.harness import replay
from replay.neighbours import ADDED, HUGE, NOT_A_NUMBER, REMOVED, REPLACED
from replay.test_replay import held
from replay.toys import NUM_UNITS, PRIVACY

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.images.class_gaussians import ClassCovariances, ClassGaussians
from lightning_dp.privacy.accounting import epsilon_pld
from lightning_dp.privacy.ledger import Ledger

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook"),
]


class Encoded:
    def latents(self, batch: dict) -> torch.Tensor:
        return batch["latents"]


def normal_classes(*, dimension: int = 12, count: int = 20_000) -> tuple[list[dict], torch.Tensor]:
    """Batches of latents of one class, three directions and a rest around 1, and their covariance."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(dimension, 3, generator=generator)
    latents = 1 + torch.randn(count, 3, generator=generator) @ directions.T
    latents += 0.3 * torch.randn(count, dimension, generator=generator)
    batches = [
        {"latents": part.view(-1, 1, 1, 1, dimension), "labels": torch.zeros(len(part), dtype=torch.int64)}
        for part in latents.split(1000)
    ]
    return batches, directions @ directions.T + 0.09 * torch.eye(dimension)


def made(**options) -> tuple[ClassGaussians, torch.Tensor]:
    prior = ClassGaussians(rank=3, mean_radius=100, spread_radius=100, **options)
    prior.build(num_classes=2, dimension=12)
    batches, covariance = normal_classes()
    prior.fit_exactly(Encoded(), batches)
    return prior, covariance


def test_it_is_the_posterior_mean_of_a_normal_distribution():
    prior, covariance = made()
    noisy = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    alpha, sigma = torch.full((5, 1, 1, 1), 0.6), torch.full((5, 1, 1, 1), 0.8)
    found = prior.clean(noisy.view(5, 1, 1, 12), torch.zeros(5, dtype=torch.int64), alpha=alpha, sigma=sigma)
    gain = 0.6 * covariance @ torch.linalg.inv(0.36 * covariance + 0.64 * torch.eye(12))
    expected = 1 + (noisy - 0.6) @ gain.T
    torch.testing.assert_close(found.view(5, 12), expected, atol=0.03, rtol=0)


def test_an_empty_class_and_no_class_are_all_images_together():
    prior, _ = made()
    noisy = torch.randn(3, 1, 1, 12, generator=torch.Generator().manual_seed(1))
    ones = torch.full((3, 1, 1, 1), 0.7)
    of = [prior.clean(noisy, torch.full((3,), label), alpha=ones, sigma=ones) for label in (0, 1, -1)]
    torch.testing.assert_close(of[0], of[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(of[0], of[2], atol=1e-4, rtol=0)


def test_directions_within_the_noise_are_dropped():
    prior = ClassGaussians(rank=8)
    prior.build(num_classes=0, dimension=60)
    rng = np.random.default_rng(0)
    prior._counts = np.array([1000.0])
    noise = rng.normal(size=(60, 60)) * 20
    noise = (np.triu(noise) + np.triu(noise, 1).T)[None]
    strong = np.zeros(60)
    strong[0] = 1.0
    prior.set_covariances(noise + 1000 * np.outer(strong, strong), noise=20.0)
    variances = prior.variances[0].numpy()
    assert variances[0] == pytest.approx(1.0, abs=0.15), "noise lifts the eigenvalue, and is taken off again"
    assert (variances[1:] == 0).all()
    assert (prior.basis[0, :, 1:] == 0).all()


def test_what_the_directions_leave_is_known_from_the_trace():
    prior, _ = made()
    assert prior.rest[0] == pytest.approx(0.09, rel=0.02)


def test_where_noise_hides_a_class_its_directions_are_those_of_all():
    """The variation of the first four drowns in the noise; all together show it."""
    prior = ClassGaussians(rank=4)
    prior.build(num_classes=8, dimension=40)
    rng = np.random.default_rng(0)
    prior._counts = np.array([1000.0] * 8 + [0.0])
    shape, rest = np.zeros((40, 40)), 0.1 * np.eye(40)
    shape[0, 0] = 1.0
    amounts = np.array([0.4] * 4 + [3.0] * 4 + [0.0])
    noise = rng.normal(size=(9, 40, 40)) * 100
    noise = np.triu(noise) + np.triu(noise, 1).transpose(0, 2, 1)
    counts = 1000.0 * (amounts > 0)
    moments = counts[:, None, None] * (amounts[:, None, None] * shape + rest)
    prior.set_covariances(moments + noise, noise=100.0)
    assert (prior.basis[:8, 0, 0].abs() > 0.7).all()
    assert (prior.variances[:8, 0] > 0).all()


def fit(folder, prior, **privacy):
    data = npz_data(write_npz(folder / "data"))
    options = {"target_epsilon": 3.0, "delta": 1e-2, "expected_batch_size": 20, **privacy}
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=2,
        logger=False,
        callbacks=[] if privacy.get("off") else [DifferentialPrivacy(**options)],
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = tiny_module(base_denoiser=prior)
    trainer.fit(module, datamodule=data)
    return trainer, module


def test_releases_and_training_together_cost_the_target(tmp_path, ledger_path):
    trainer, module = fit(tmp_path, ClassGaussians(rank=4, budget_share=0.4))
    (private,) = (c for c in trainer.callbacks if isinstance(c, DifferentialPrivacy))
    assert len(private.plan.prior) == 2
    assert private.plan.epsilon == pytest.approx(3.0, rel=2e-3)
    assert epsilon_pld(private.plan.prior, 1e-2) == pytest.approx(1.2, rel=2e-3)
    notes = [entry.detail["note"] for entry in Ledger(ledger_path).entries() if entry.kind == "release"]
    assert [note.split(":")[0] for note in notes] == ["ClassMeans", "ClassCovariances"]
    assert (module.base_denoiser.mean != 0).any(dim=1).all()


def test_without_privacy_they_are_those_of_the_train_set(tmp_path, ledger_path):
    _, module = fit(tmp_path, ClassGaussians(rank=4), off=True)
    with np.load(tmp_path / "data" / "train.npz") as content:
        images, labels = content["images"] / 127.5 - 1, content["labels"]
    for label in range(len(CLASSES)):
        expected = images[labels == label].mean(axis=0).flatten()
        np.testing.assert_allclose(module.base_denoiser.mean[label].numpy(), expected, atol=1e-4)
    assert not ledger_path.exists()


def test_a_net_of_zeros_samples_the_classes(tmp_path):
    _, module = fit(tmp_path, ClassGaussians(rank=4), off=True)
    generator = torch.Generator().manual_seed(0)
    samples = module.sample(torch.arange(3).repeat_interleave(40), generator=generator)
    means = samples.flatten(1).unflatten(0, (3, 40)).mean(dim=1)
    assert (means - module.base_denoiser.mean[:3]).abs().mean() < 0.05


def of_images(folder, *, users=None, ranks=1, neighbours=(REMOVED,)):
    pictures = write_npz(folder / "pictures", train=NUM_UNITS + 1, users=users)
    return replay(
        lambda: tiny_module(
            net=awake(tiny_net()), base_denoiser=ClassGaussians(rank=4, noise_multiplier=3.0)
        ),
        lambda: npz_data(pictures, **({"unit": "user", "images_per_user": 2} if users else {})),
        folder=folder,
        steps=3,
        num_units=NUM_UNITS,
        neighbours=list(neighbours),
        privacy=PRIVACY,
        trainer={"limit_val_batches": 0},
        ranks=ranks,
    )


def test_a_unit_moves_the_releases_by_at_most_what_is_paid_for(tmp_path):
    held(of_images(tmp_path, neighbours=[REMOVED, ADDED, HUGE, NOT_A_NUMBER, REPLACED]))


def test_a_user_is_one_unit(tmp_path):
    # Each has one image, drawn twice: which one a user draws is nothing the harness could keep apart.
    held(of_images(tmp_path, users=NUM_UNITS + 1))


def test_two_ranks(tmp_path):
    held(of_images(tmp_path, ranks=2))


def test_covariances_without_noise_are_caught(tmp_path, monkeypatch):
    """Planted: what is published is noisy, what is kept is not."""
    own = ClassCovariances.values

    def peeks(self, batches) -> np.ndarray:
        self.raw = own(self, batches)
        return self.raw

    def keeps(self, answer: np.ndarray) -> None:
        mechanism = self.mechanism
        self._prior.set_covariances(mechanism.answer(mechanism.sums(self.raw)), noise=0.0)

    monkeypatch.setattr(ClassCovariances, "values", peeks)
    monkeypatch.setattr(ClassCovariances, "apply", keeps)
    assert "seen" in of_images(tmp_path).kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"floor": 0.0}, "floor is 0"),
        ({"mean_radius": math.inf}, "mean_radius is inf"),
        ({"budget_share": 1.0}, "budget_share is 1.0"),
        ({"budget_share": 0.1, "noise_multiplier": 1.0}, "leave one out"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClassGaussians(**options)


def test_latents_too_many_for_covariances_are_refused():
    with pytest.raises(ValueError, match="covariances of 16384 latents"):
        ClassGaussians().build(num_classes=10, dimension=16_384)


def test_facts_name_it(tmp_path):
    assert tiny_module(base_denoiser=ClassGaussians()).facts()["prior"] == "ClassGaussians"
    assert "prior" not in json.dumps(tiny_module().facts())
