"""Bad input, in whatever format it lies: the file is named with a fix, and skipped only on request."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_support import write_png
from PIL import Image

from lightning_dp.cli import main
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.image_folder import ImageFolder
from lightning_dp.images.data.npz import NPZ
from lightning_dp.images.data.parquet import Parquet
from lightning_dp.images.data.source import ImageSource, Joined
from lightning_dp.images.data.tar_shards import TarShards

_CLASSES = ["a", "b"]


def _encoded(level: int, *, mode: str = "L", size: int = 8, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size), color=level if mode == "L" else (level,) * 3).save(file, format=kind)
    return file.getvalue()


def _folder(path: Path, images: list[bytes], labels: list[int]) -> ImageSource:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = path / "train" / _CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(image)
    texts = [
        {"file_name": f"{_CLASSES[label]}/{number}.png", "text": f"no. {number}"}
        for number, label in enumerate(labels)
    ]
    (path / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(text) for text in texts))
    return ImageFolder(str(path), captions=True)


def _parquet(path: Path, images: list[bytes], labels: list[int]) -> ImageSource:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [f"no. {number}" for number in range(len(images))]
    users = [f"user {number}" for number in range(len(images))]
    table = pyarrow.table({"image": images, "label": labels, "text": texts, "who": users})
    parquet.write_table(table, path / "train-0.parquet")
    return Parquet(str(path), class_names=_CLASSES, caption_column="text", user_column="who")


def _shards(path: Path, images: list[bytes], labels: list[int]) -> ImageSource:
    with tarfile.open(path / "train-0.tar", "w") as archive:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            parts = {"png": image, "cls": str(label).encode(), "txt": f"no. {number}".encode()}
            for kind, content in parts.items():
                info = tarfile.TarInfo(f"{number}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return TarShards(str(path), class_names=_CLASSES, captions=True)


_SOURCES: dict[str, tuple[Callable[..., ImageSource], str]] = {
    "folder": (_folder, r"train/b/1\.png"),
    "parquet": (_parquet, r"train-0\.parquet, row 1"),
    "shards": (_shards, r"train-0\.tar, 1"),
}
_CORRUPT = {
    "nothing": b"",
    "text": b"<html>not found</html>",
    "half a PNG": _encoded(9)[:45],
    "half a JPEG": _encoded(9, size=64, kind="jpeg")[:300],
    "a PNG's damaged pixels": _encoded(9).replace(b"IDAT", b"IDAT\xff\xff", 1),
}


@pytest.mark.parametrize("corrupt", _CORRUPT)
@pytest.mark.parametrize("name", _SOURCES)
def test_what_cant_be_read_is_named_and_skipped_only_on_request(tmp_path, name, corrupt):
    write, where = _SOURCES[name]
    images = [_encoded(0), _CORRUPT[corrupt], _encoded(20), _encoded(30)]
    source = write(tmp_path, images, [0, 1, 0, 1])
    fix = "replace or remove it, or set data.unreadable to skip"
    with pytest.raises(ValueError, match=rf"{where} can't be read as an image .*{fix}") as caught:
        ImageData(source, size=8).setup("fit")
    assert "\n" not in str(caught.value)
    data = ImageData(source, size=8, unreadable="skip")
    with pytest.warns(UserWarning, match="1 of 4 images can't be read and were skipped"):
        data.setup("fit")
    assert data.facts()["nonprivate/skipped_images"] == 1
    assert data.privacy_unit().num_units == len(data.train_dataset) == 3
    # Whatever belongs to an image is still beside it.
    pixels = data.train_dataset.pixels
    levels = pixels.get(np.arange(3))[:, 0, 0, 0].tolist()
    assert sorted(levels) == [0, 20, 30]
    assert pixels.labels.tolist() == [{0: 0, 20: 0, 30: 1}[level] for level in levels]
    assert pixels.captions == [f"no. {level // 10}" for level in levels]
    if pixels.users is not None:
        assert pixels.users.tolist() == [f"user {level // 10}" for level in levels]


def test_skipping_is_for_what_cant_be_read_and_nothing_else(tmp_path):
    large, colour = tmp_path / "large", tmp_path / "colour"
    for folder, image in ((large, _encoded(1, size=9)), (colour, _encoded(1, mode="RGB"))):
        source = _folder(folder, [_encoded(0), image], [0, 1])
        with pytest.raises(ValueError, match=r"train/b/1\.png has "):
            ImageData(source, size=8, unreadable="skip").setup("fit")


def test_one_image_too_large_for_its_file_is_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    source = _folder(tmp_path, [_encoded(0)], [0])
    with pytest.raises(ValueError, match=r"0\.png can't be read as an image .*decompression bomb"):
        ImageData(source, size=8).setup("fit")


def test_a_split_of_which_nothing_can_be_read_is_refused_even_with_skip(tmp_path):
    source = _folder(tmp_path, [b"", b"x"], [0, 1])
    data = ImageData(source, size=8, unreadable="skip")
    with pytest.warns(UserWarning, match="2 of 2"), pytest.raises(ValueError, match="no image of the split"):
        data.setup("fit")


def test_a_class_that_skipping_empties_is_named(tmp_path):
    source = _folder(tmp_path, [_encoded(0), b""], [0, 1])
    data = ImageData(source, size=8, unreadable="skip")
    with (
        pytest.warns(UserWarning, match="1 of 2"),
        pytest.raises(ValueError, match=r"the class 'b' has no image in train: take it out .*empty_classes"),
    ):
        data.setup("fit")


def test_of_joined_sources_the_file_is_named(tmp_path):
    bad = _folder(tmp_path / "bad", [_encoded(0), b""], [0, 1])
    good = _folder(tmp_path / "good", [_encoded(0)], [0])
    joined = Joined(sources=[good, bad], class_names=_CLASSES, labels={"a": [0], "b": [1]})
    with pytest.raises(ValueError, match=r"bad/train/b/1\.png can't be read"):
        ImageData(joined, size=8).setup("fit")


@pytest.mark.parametrize(("name", "label"), [("parquet", 2), ("parquet", -2), ("shards", 2), ("shards", -2)])
def test_a_label_out_of_range_is_named(tmp_path, name, label):
    write, where = _SOURCES[name]
    source = write(tmp_path, [_encoded(0), _encoded(1), _encoded(2)], [0, label, 1])
    message = rf"{where} has the label {label}, but there are 2 classes, counted from 0 .*correct it"
    with pytest.raises(ValueError, match=message):
        ImageData(source, size=8).setup("fit")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 0.5, 1.0], r"train\.npz holds labels of shape \(3,\) and type float64; .* whole numbers"),
        (["a", "b", "a"], r"labels of shape \(3,\) and type <U1; they have to be whole numbers"),
        ([[0], [1], [0]], r"labels of shape \(3, 1\)"),
        ([0, 1], r"3 images and 2 labels"),
        ([0, 5, 1], r"train\.npz, image 1 has the label 5, but there are 2 classes"),
    ],
)
def test_labels_of_an_npz_that_are_none(tmp_path, labels, message):
    np.savez(tmp_path / "train.npz", images=np.zeros((3, 8, 8), np.uint8), labels=labels)
    with pytest.raises(ValueError, match=message):
        ImageData(NPZ(str(tmp_path), class_names=_CLASSES), size=8).setup("fit")


def test_a_bad_image_ends_a_fit_in_one_sentence_before_anything_is_charged(tmp_path, capsys, ledger_path):
    source = tmp_path / "mine"
    write_png(source / "train" / "a" / "0.png", size=(28, 28))
    write_png(source / "train" / "a" / "1.png").write_bytes(b"")
    recipe = Path(__file__).parents[2] / "conf" / "experiment" / "fashion_mnist.yaml"
    options = [
        "--data.init_args.source=lightning_dp.images.data.image_folder.ImageFolder",
        f"--data.init_args.source.init_args.path={source}",
        "--data.init_args.size=28",
        "--trainer.callbacks=null",
        "--run.wandb=disabled",
        f"--run.dir={tmp_path / 'run'}",
    ]
    assert main(["fit", f"--config={recipe}", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lightning-dp fit: ")
    assert f"{source / 'train' / 'a' / '1.png'} can't be read as an image" in error
    assert not ledger_path.exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
