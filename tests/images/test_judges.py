"""Classifiers that papers report, and distances to train images, which stay nonprivate."""

import pytest
import torch
from image_support import npz_data, pictures, write_npz

from lightning_dp.images.evaluation import Evaluation, measure
from lightning_dp.images.judges import MLP, ResNet, ResNeXt, WideResNet40


def _millions(net) -> float:
    return sum(p.numel() for p in net.parameters()) / 1e6


@pytest.mark.parametrize(
    ("kind", "millions"), [(WideResNet40, 8.95), (ResNet, 11.17), (ResNeXt, 23.0), (MLP, 0.308)]
)
def test_they_are_as_large_as_published(kind, millions):
    with torch.device("meta"):
        net = kind(image_channels=3, size=32, num_classes=10)
    assert _millions(net) == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("kind", [WideResNet40, ResNet, ResNeXt, MLP])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 96)])
def test_they_take_images_of_any_size(kind, channels, size):
    net = kind(image_channels=channels, size=size, num_classes=5).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, channels, size, size)).shape == (1, 5)


def test_parts_are_chosen_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = npz_data(write_npz(tmp_path / "data", train=60, test=60))
    samples, labels = pictures(200, seed=5)
    parts = ("mlp", "resnet", "train_distances")
    evaluation = Evaluation(parts=parts, epochs=2, distance_samples=60)
    metrics = measure(samples[:, None], labels, num_classes=3, data=data, evaluation=evaluation)
    assert metrics["test/accuracy_mlp"] > 60
    assert metrics["test/accuracy_resnet"] > 60
    names = [name for name in metrics if name.endswith("_train")]
    assert len(names) == 4
    assert all(name.startswith("nonprivate/") for name in names)  # no ε covers them
    assert not any(name.startswith("test/") and "_train" in name for name in metrics)
    assert not (tmp_path / "cache").exists()  # features of private images leave no file
    with pytest.raises(ValueError, match="choose at least one of distances, cnn, mlp"):
        Evaluation(parts=("vgg",))
