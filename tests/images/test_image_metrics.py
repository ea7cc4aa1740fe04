"""Distances, classifiers of samples, memorisation: right where the answer is known."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from image_support import CLASSES, pictures
from torchmetrics.image.fid import _compute_fid

from lightning_dp.images.data.public28 import Clothing, NotMNIST
from lightning_dp.images.downstream import SmallCNN, WideResNet, accuracy, train_classifier
from lightning_dp.images.features import FeatureExtractor, available_extractor
from lightning_dp.images.memorisation import memorisation, nearest_distances
from lightning_dp.images.metrics import cached_features, distances

DATA = os.environ.get("LIGHTNING_DP_DATA", "")


def test_distances_against_another_implementation():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 8, generator=generator)
    samples = torch.randn(300, 8, generator=generator) * 1.2 + 0.5
    found = distances(samples, real, extractor_name="lite0")
    assert found.keys() == {"fd_lite0", "kd_lite0", "precision_lite0", "recall_lite0"}
    wide = [real.double(), samples.double()]
    expected = _compute_fid(wide[0].mean(0), wide[0].T.cov(), wide[1].mean(0), wide[1].T.cov())
    assert found["fd_lite0"] == pytest.approx(float(expected), rel=1e-6)
    same = distances(real, real, extractor_name="inception")
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["precision"] == same["recall"] == 1
    far = distances(samples + 100, real, extractor_name="inception")
    assert far["precision"] == far["recall"] == 0
    with pytest.raises(ValueError, match="at least 50 images"):
        distances(samples[:10], real, extractor_name="lite0")


class _Means(FeatureExtractor):
    """A real, if poor, extractor that counts its calls."""

    name = "means"
    calls = 0

    def batch(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.float().mean(dim=(2, 3))


def test_features_are_cached_by_the_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = pictures(70)[0][:, None]
    extractor = _Means()
    first = cached_features(images, extractor=extractor)
    assert first.shape == (70, 3)
    assert extractor.calls == 5  # 4 of 16, and 6
    assert torch.equal(cached_features(images.copy(), extractor=extractor), first)
    assert extractor.calls == 5
    images[0, 0, 0, 0] ^= 1
    assert not torch.equal(cached_features(images, extractor=extractor), first)


def test_missing_weights_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no weights to compare images by: put .* into"):
        available_extractor(str(tmp_path))


@pytest.mark.skipif(
    not (Path(DATA) / "weights" / "efficientnet-lite0-57934424.pth").is_file(),
    reason="needs weights/efficientnet-lite0-57934424.pth: set LIGHTNING_DP_DATA",
)
def test_lite0_tells_garments_from_letters():
    """Wrongly assigned weights would still give numbers, but not ones that know what is alike."""
    extractor = available_extractor()
    if extractor.name != "lite0":
        pytest.skip("Inception's weights are at hand, so lite0 is not in use")
    garments = Clothing().open("train").array()[:20, None]
    letters = NotMNIST().open("train").array()[:10, None]
    first, second, third = (extractor.features(x) for x in (garments[:10], garments[10:], letters))
    assert first.shape == (10, 1280)
    within = float((first.mean(0) - second.mean(0)).norm())
    between = float((first.mean(0) - third.mean(0)).norm())
    assert between > 1.5 * within


@pytest.mark.parametrize("net_fn", [SmallCNN, WideResNet])
def test_a_classifier_of_samples_knows_real_images(net_fn):
    images, labels = pictures(240 if net_fn is SmallCNN else 120)
    test, test_labels = pictures(60, seed=1)
    options = {"net_fn": net_fn, "num_classes": len(CLASSES), "batch_size": 32, "epochs": 6}
    if net_fn is WideResNet:
        options |= {"batch_size": 8, "epochs": 4}
    net = train_classifier(images[:, None], labels, **options)
    assert accuracy(net, test[:, None], test_labels) > 90
    # Samples whose labels say nothing teach nothing.
    shuffled = np.random.default_rng(0).permutation(labels)
    if net_fn is SmallCNN:
        blind = train_classifier(images[:, None], shuffled, **options)
        assert accuracy(blind, test[:, None], test_labels) < 75
    with pytest.raises(ValueError, match="10 samples can't train"):
        train_classifier(images[:10, None], labels[:10], **options)


def test_training_a_classifier_is_repeatable_and_leaves_the_generator_alone():
    images, labels = pictures(120)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    nets = [
        train_classifier(images[:, None], labels, net_fn=SmallCNN, num_classes=3, epochs=1) for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    for mine, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_planted_copies_are_found():
    rng = np.random.default_rng(0)
    train, test, samples = (
        rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8) for count in (500, 200, 100)
    )
    assert nearest_distances(train[:3], train).max() == pytest.approx(0, abs=1e-3)
    plus_one = (train[:1].astype(int) ^ 1).astype(np.uint8)
    assert nearest_distances(plus_one, train)[0] == pytest.approx(1, rel=1e-3)
    honest = memorisation(samples, train=train, test=test)
    assert honest["nonprivate/copies"] < 6
    samples[:40] = train[:40]
    assert memorisation(samples, train=train, test=test)["nonprivate/copies"] >= 40
    assert all(name.startswith("nonprivate/") for name in honest)
