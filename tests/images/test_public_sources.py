"""EMNIST and downsampled ImageNet, on small files of the published forms."""

import gzip
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lightning_dp.images.data.emnist import EMNIST
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.imagenet import ImageNet32, ImageNet64


def idx(array: np.ndarray) -> bytes:
    """A gzipped idx file of bytes."""
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes())


def _letters(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 26 + 1


@pytest.mark.parametrize("archived", [False, True])
def test_emnist_stands_upright_and_counts_from_zero(tmp_path, archived):
    folder = tmp_path / "emnist"
    folder.mkdir()
    files, images = {}, {}
    for split, count in (("train", 52), ("test", 26)):
        images[split], labels = _letters(count)
        files[f"emnist-letters-{split}-images-idx3-ubyte.gz"] = idx(images[split])
        files[f"emnist-letters-{split}-labels-idx1-ubyte.gz"] = idx(labels)
    if archived:
        with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"gzip/{name}", content)
    else:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    source = EMNIST(data_dir=str(tmp_path))
    assert source.public
    train = source.open("train")
    np.testing.assert_array_equal(train.array(), images["train"].transpose(0, 2, 1))
    assert train.labels.tolist() == [*range(26), *range(26)]
    assert len(source.open("test")) == 26
    data = ImageData(source, size=32, mode="rgb", other_sizes="crop", other_modes="convert")
    assert data.train_dataset[0]["images"].shape == (1, 3, 32, 32)


def test_emnist_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz is missing, and so is gzip\.zip"):
        EMNIST(data_dir=str(tmp_path)).open("train")
    folder = tmp_path / "emnist"
    folder.mkdir()
    (folder / "gzip.zip").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"gzip\.zip is not a whole archive"):
        EMNIST(data_dir=str(tmp_path)).open("train")
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        archive.writestr("gzip/emnist-digits-train-images-idx3-ubyte.gz", b"")
    with pytest.raises(ValueError, match="it is another archive"):
        EMNIST(data_dir=str(tmp_path)).open("train")
    images, labels = _letters(4)
    (folder / "emnist-letters-train-images-idx3-ubyte.gz").write_bytes(idx(images))
    (folder / "emnist-letters-train-labels-idx1-ubyte.gz").write_bytes(idx(labels - 1))  # as MNIST counts
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        EMNIST(data_dir=str(tmp_path)).open("train")


def _write_imagenet(folder: Path, *, side: int, kind: str) -> np.ndarray:
    """Two batches and a validation file; (7, 3, S, S) of the train split."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, side, side), dtype=np.uint8)
    for name, rows in (
        ("train_data_batch_1", slice(0, 3)),
        ("train_data_batch_2", slice(3, 6)),
        ("train_data_batch_10", slice(6, 7)),
        ("val_data", slice(0, 2)),
    ):
        data, labels = images[rows].reshape(-1, 3 * side * side), [1, 1000, 7][: len(images[rows])]
        if kind == "npz":
            np.savez(folder / f"{name}.npz", data=data, labels=np.array(labels), mean=data.mean(axis=0))
        else:
            batch = {"data": data, "labels": labels, "mean": data.mean(axis=0)}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return images


@pytest.mark.parametrize("kind", ["npz", "pickle"])
@pytest.mark.parametrize(("source", "side"), [(ImageNet32, 32), (ImageNet64, 64)])
def test_downsampled_imagenet(tmp_path, source, side, kind):
    images = _write_imagenet(tmp_path / f"imagenet{side}", side=side, kind=kind)
    table = source(data_dir=str(tmp_path)).open("train")
    np.testing.assert_array_equal(table.array(), images.transpose(0, 2, 3, 1))
    assert table.labels.tolist() == [0, 999, 6, 0, 999, 6, 0]
    assert len(table.class_names) == 1000
    assert len(source(data_dir=str(tmp_path)).open("test")) == 2
    plain = source(data_dir=str(tmp_path), labelled=False)
    assert (plain.public, plain.class_names) == (True, ())
    assert set(plain.open("train").labels) == {-1}


def test_imagenet_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="has no train_data_batch_1: get the images of 32 pixels"):
        ImageNet32(data_dir=str(tmp_path)).open("train")
    _write_imagenet(tmp_path / "imagenet32", side=64, kind="npz")
    with pytest.raises(ValueError, match=r"pixels of shape \(3, 12288\), and images of 32 × 32 have"):
        ImageNet32(data_dir=str(tmp_path)).open("train")
    folder = tmp_path / "imagenet64"
    folder.mkdir()
    (folder / "train_data_batch_1").write_bytes(pickle.dumps({"data": _Evil(), "labels": []}))
    with pytest.raises(ValueError, match="system is not part of ImageNet"):
        ImageNet64(data_dir=str(tmp_path)).open("train")
    (folder / "train_data_batch_1").write_bytes(pickle.dumps({"labels": [1]}))
    with pytest.raises(ValueError, match="holds no batch of ImageNet"):
        ImageNet64(data_dir=str(tmp_path)).open("train")


class _Evil:
    def __reduce__(self):
        import os

        return os.system, ("true",)
