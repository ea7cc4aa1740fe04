"""Sources: published files are checked, users' files are read as they lie, joined sets are relabelled."""

import gzip
import inspect
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_support import write_png
from PIL import Image

from lightning_dp.choices import import_choices
from lightning_dp.images.data.cifar import CIFAR10, CIFAR100
from lightning_dp.images.data.idx import read_idx
from lightning_dp.images.data.image_folder import ImageFolder
from lightning_dp.images.data.made_up import MadeUpImages
from lightning_dp.images.data.mnist import MNIST, FashionMNIST
from lightning_dp.images.data.npz import NPZ
from lightning_dp.images.data.parquet import Parquet
from lightning_dp.images.data.public28 import Clothing, KannadaDigits, NotMNIST, Omniglot
from lightning_dp.images.data.source import ImageSource, Joined
from lightning_dp.images.data.tar_shards import TarShards

DATA = os.environ.get("LIGHTNING_DP_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="needs the image data: set LIGHTNING_DP_DATA")


def _png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), color=level).save(file, format="png")
    return file.getvalue()


@needs_data
@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_real_mnists(source):
    table = source().open("test")
    assert table.array().shape == (10_000, 28, 28)
    assert np.unique(table.labels).tolist() == list(range(10))
    assert len(table.class_names) == 10


@needs_data
@pytest.mark.parametrize(
    ("source", "count"), [(Clothing, 3_781), (Omniglot, 4_840), (KannadaDigits, 20_240), (NotMNIST, 10_000)]
)
def test_real_public_sets(source, count):
    table = source().open("train")
    assert table.array().shape == (count, 28, 28)
    assert source().open("test") is None
    assert table.labels.max() < max(1, len(table.class_names))


@needs_data
def test_a_changed_pixel_is_noticed(tmp_path):
    name = "t10k-labels-idx1-ubyte.gz"
    folder = tmp_path / "fashion_mnist"
    shutil.copytree(Path(DATA) / "fashion_mnist", folder, copy_function=shutil.copyfile)
    content = bytearray(gzip.decompress((folder / name).read_bytes()))
    # Wrapped anew the same payload is fine, whatever the wrapper's own checksum is.
    (folder / name).write_bytes(gzip.compress(bytes(content), compresslevel=1))
    assert len(FashionMNIST(data_dir=str(tmp_path)).open("test")) == 10_000
    content[100] ^= 1
    (folder / name).write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(ValueError, match=r"t10k-labels.*sha256 checksum"):
        FashionMNIST(data_dir=str(tmp_path)).open("test")


def test_idx_files_that_are_none():
    good = b"\0\0\x08\x01" + (3).to_bytes(4, "big") + bytes([5, 6, 7])
    assert read_idx(gzip.compress(good), where="x").tolist() == [5, 6, 7]
    for content, message in (
        (gzip.compress(good[:-1]), "announces"),
        (gzip.compress(b"\0\0\x0d\x01" + good[4:]), "not an idx file"),
        (gzip.compress(good)[:-5], "not a whole gzip file"),
        (b"hello", "not a whole gzip file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_idx(content, where="x")


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"clothing_small_28.npz is missing.*LIGHTNING_DP_DATA"):
        Clothing(data_dir=str(tmp_path)).open("train")


def _archive(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar_archives(tmp_path, kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    labels = [3, 1, 4, 1]
    if kind == "binary":
        content = b"".join(bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True))
        fine = b"".join(bytes([0, 10 + y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True))
        members = {"cifar-10-batches-bin/data_batch_1.bin": content, "a/test_batch.bin": content[:3073]}
        members100 = {"cifar-100-binary/train.bin": fine}
    else:
        content = pickle.dumps({"data": pixels, "labels": labels}, protocol=2)
        one = pickle.dumps({"data": pixels[:1], "labels": labels[:1]}, protocol=2)
        members = {"cifar-10-batches-py/data_batch_1": content, "cifar-10-batches-py/test_batch": one}
        fine = pickle.dumps({"data": pixels, "fine_labels": [10 + y for y in labels]}, protocol=2)
        members100 = {"cifar-100-python/train": fine}
    _archive(tmp_path / "cifar10" / f"cifar-10-{kind}.tar.gz", members)
    _archive(tmp_path / "cifar100" / f"cifar-100-{kind}.tar.gz", members100)
    table = CIFAR10(data_dir=str(tmp_path)).open("train")
    assert table.labels.tolist() == labels
    red_of_second_row = pixels[0, 32:64]
    assert table.array()[0, 1, :, 0].tolist() == red_of_second_row.tolist()
    assert len(CIFAR10(data_dir=str(tmp_path)).open("test")) == 1
    assert CIFAR100(data_dir=str(tmp_path)).open("train").labels.tolist() == [13, 11, 14, 11]


class _Evil:
    def __reduce__(self):
        return os.system, ("echo planted",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    members = {"cifar-10-batches-py/data_batch_1": pickle.dumps({"data": _Evil(), "labels": []})}
    _archive(tmp_path / "cifar10" / "cifar-10-python.tar.gz", members)
    with pytest.raises(ValueError, match="system is not part of CIFAR"):
        CIFAR10(data_dir=str(tmp_path)).open("train")


def test_image_folder_with_users(tmp_path):
    for split, name, user in (
        ("train", "cat", "ann"),
        ("train", "cat", "bob"),
        ("train", "dog", "ann"),
        ("test", "dog", "eve"),
    ):
        write_png(tmp_path / split / name / user / "1.png")
    source = ImageFolder(str(tmp_path), users=True)
    table = source.open("train")
    assert source.class_names == ("cat", "dog")
    assert source.dataset_id == tmp_path.name
    assert table.labels.tolist() == [0, 0, 1]
    assert table.users.tolist() == ["ann", "bob", "ann"]
    assert source.open("test").labels.tolist() == [1]
    write_png(tmp_path / "train" / "cat" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png lies in no user's folder"):
        source.open("train")
    write_png(tmp_path / "test" / "cow" / "eve" / "2.png")
    with pytest.raises(ValueError, match="'cow', which is no class of the train split"):
        source.open("test")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": _png(level), "path": None} for level in (10, 200)]
    table = pyarrow.table({"image": images, "label": ["b", "a"], "who": [7, 8]})
    parquet.write_table(table, tmp_path / "train-0.parquet")
    source = Parquet(str(tmp_path), class_names=["a", "b"], user_column="who")
    opened = source.open("train")
    assert opened.labels.tolist() == [1, 0]
    assert opened.users.tolist() == ["7", "8"]
    assert np.asarray(opened.read(1)).max() == 200
    assert source.open("test") is None
    with pytest.raises(ValueError, match="no column 'kind'"):
        Parquet(str(tmp_path), class_names=["a"], label_column="kind").open("train")
    with pytest.raises(
        ValueError, match=r"row 0 has as its label a text of 1 character .* which is none of the class_names"
    ):
        Parquet(str(tmp_path), class_names=["a"]).open("train")
    (tmp_path / "train-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="can't be read as parquet"):
        source.open("train")


def test_tar_shards(tmp_path):
    def shard(name: str, members: dict[str, bytes]) -> None:
        with tarfile.open(tmp_path / name, "w") as archive:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    shard("train-0.tar", {"a/1.png": _png(10), "a/1.cls": b"1", "a/2.png": _png(20), "a/2.cls": b"0"})
    shard("train-1.tar", {"b/1.json": json.dumps({"label": "y", "by": "ann"}).encode(), "b/1.png": _png(30)})
    opened = TarShards(str(tmp_path), class_names=["x", "y"]).open("train")
    assert opened.labels.tolist() == [1, 0, 1]
    assert [int(np.asarray(opened.read(i)).max()) for i in range(3)] == [10, 20, 30]
    with pytest.raises(ValueError, match=r"train-0\.tar, a/1 has no 'by'"):
        TarShards(str(tmp_path), class_names=["x", "y"], user_key="by").open("train")
    (tmp_path / "train-2.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"train-2\.tar can't be read"):
        TarShards(str(tmp_path)).open("train")


def test_npz_that_is_none(tmp_path):
    source = NPZ(str(tmp_path), class_names=["a"])
    with pytest.raises(ValueError, match=r"train\.npz is missing"):
        source.open("train")
    np.savez(tmp_path / "train.npz", pictures=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="no 'images'"):
        source.open("train")
    np.savez(tmp_path / "train.npz", images=np.zeros((2, 8, 8), np.float32), labels=[0, 0])
    with pytest.raises(ValueError, match="have to be uint8"):
        source.open("train")
    np.savez(tmp_path / "train.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0])
    with pytest.raises(ValueError, match="2 images and 1 labels"):
        source.open("train")


def test_joined_sets_take_the_classes_of_another(tmp_path):
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        images = np.full((4, 8, 8), 50 * (number + 1), np.uint8)
        np.savez(tmp_path / name / "train.npz", images=images, labels=[0, 0, 0, 1])
    sources = [
        NPZ(str(tmp_path / "one"), class_names=["shoe", "hat"]),
        NPZ(str(tmp_path / "two"), class_names=["coat", "scarf"]),
    ]
    joined = Joined(
        sources=sources, class_names=["coat", "boot", "sandal"], labels={"shoe": [1, 2], "coat": [0]}
    )
    table = joined.open("train")
    assert table.labels.tolist() == [1, 2, 1, -1, 0, 0, 0, -1]
    assert np.asarray(table.read(5)).max() == 100
    assert "two" in table.name(5)
    assert joined.dataset_id == "one+two"
    assert joined.open("test") is None
    with pytest.raises(ValueError, match="'cap', which no source has"):
        Joined(sources=sources, class_names=["coat"], labels={"cap": [0]})
    with pytest.raises(ValueError, match=r"'shoe' the numbers \[3\]"):
        Joined(sources=sources, class_names=["coat"], labels={"shoe": [3]})


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_captions_of_tar_shards(tmp_path):
    _tar(tmp_path / "train-0.tar", {"1.png": _png(10), "1.txt": " grün\n".encode(), "2.png": _png(20)})
    assert TarShards(str(tmp_path)).open("train").captions is None
    source = TarShards(str(tmp_path), captions=True)
    assert source.has_captions
    with pytest.raises(ValueError, match=r"train-0\.tar, 2 has no caption in its \.txt .*captions to false"):
        source.open("train")
    _tar(tmp_path / "train-0.tar", {"1.png": _png(10), "1.txt": b"green", "2.png": _png(20), "2.txt": b""})
    assert source.open("train").captions == ["green", ""]


def test_captions_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(*texts: str | None) -> None:
        column = pyarrow.array(texts, pyarrow.string())
        table = pyarrow.table({"image": [_png(10)] * len(texts), "text": column})
        parquet.write_table(table, tmp_path / "train-0.parquet")

    write("a", "b")
    source = Parquet(str(tmp_path), caption_column="text")
    assert source.has_captions
    assert source.open("train").captions == ["a", "b"]
    write("a", None)
    with pytest.raises(ValueError, match=r"row 1 has no caption in the column 'text'.*caption_column"):
        source.open("train")
    with pytest.raises(ValueError, match=r"no column 'words'.*caption_column"):
        Parquet(str(tmp_path), caption_column="words").open("train")


def test_captions_of_an_image_folder(tmp_path):
    for name in ("cat/1.png", "dog/1.png"):
        write_png(tmp_path / "train" / name)
    source = ImageFolder(str(tmp_path), captions=True)
    with pytest.raises(ValueError, match=r"neither metadata\.jsonl nor metadata\.csv, and captions is true"):
        source.open("train")
    metadata = tmp_path / "train" / "metadata.csv"
    metadata.write_text('file_name,text\ndog/1.png,"a dog, asleep"\ncat/1.png,a cat\n')
    assert source.open("train").captions == ["a cat", "a dog, asleep"]
    rows = [{"file_name": "cat/1.png", "text": "a cat"}, {"file_name": "dog/1.png"}]
    metadata = tmp_path / "train" / "metadata.jsonl"
    metadata.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match=r"dog/1\.png has no caption in the metadata file .*add it"):
        source.open("train")
    metadata.write_text('{"text": "whose?"}')
    with pytest.raises(ValueError, match=r"metadata\.jsonl, row 1 names no image"):
        source.open("train")
    metadata.write_text("{")
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 1 is not JSON"):
        source.open("train")


def _kinds(kind: type[ImageSource]) -> Iterator[type[ImageSource]]:
    for own in kind.__subclasses__():
        yield from _kinds(own)
        if (
            not own.__name__.startswith("_")
            and own.__module__.startswith("lightning_dp.")
            and own not in (Joined, MadeUpImages)  # they have no files of their own
        ):
            yield own


def test_every_source_names_its_files_before_they_are_there(tmp_path):
    """What `check --needs` lists; of a Joined those of all its sources."""
    import_choices()
    folder = tmp_path / "data"
    (folder / "train" / "a class").mkdir(parents=True)
    sources = []
    for kind in _kinds(ImageSource):
        accepted = inspect.signature(kind).parameters
        place = {"data_dir": str(folder)} if "data_dir" in accepted else {"path": str(folder)}
        named = {"name": "pathmnist"} if "name" in accepted else {}
        classes = accepted.get("class_names")
        if classes is not None and classes.default is inspect.Parameter.empty:
            named["class_names"] = ["a", "b"]
        sources.append(kind(**place, **named))
    assert len(sources) > 15
    for source in sources:
        assert source.files(), source
        assert all(path == folder or folder in path.parents for path in source.files()), source
    together = Joined(sources=sources[:3]).files()
    assert together == [path for source in sources[:3] for path in source.files()]
