"""CelebA, Camelyon17 and MedMNIST, on made-up files of the form in which they are published."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_dp.images.data.camelyon import Camelyon17
from lightning_dp.images.data.celeba import CelebA
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.medmnist import MedMNIST
from lightning_dp.images.data.octmnist import OCTMNIST
from lightning_dp.images.data.source import ImageSource


def _data(source: ImageSource, **options) -> ImageData:
    return ImageData(source, size=16, other_sizes="crop", other_modes="convert", **{"mode": "rgb", **options})


# --- MedMNIST ------------------------------------------------------------------------------------------


def write_octmnist(folder: Path, *, side: int = 28, **arrays) -> Path:
    """As MedMNIST saves it: three splits, labels of shape (N, 1)."""
    rng = np.random.default_rng(0)
    content = {}
    for split, count in (("train", 12), ("val", 4), ("test", 8)):
        content[f"{split}_images"] = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(count) % 4).astype(np.uint8)[:, None]
    path = folder / "octmnist" / ("octmnist.npz" if side == 28 else f"octmnist_{side}.npz")
    path.parent.mkdir(parents=True)
    np.savez(path, **{**content, **arrays})
    return path


def test_octmnist_by_its_own_keys(tmp_path):
    write_octmnist(tmp_path, side=128)
    data = _data(OCTMNIST(data_dir=str(tmp_path)), judged_size=8)
    assert len(data.train_dataset) == 12
    assert data.train_dataset[0]["images"].shape == (1, 3, 16, 16)
    assert data.test_dataset.pixels.labels.tolist() == [0, 1, 2, 3] * 2
    assert data.class_names[1] == "diabetic macular edema"
    judged = data.judged_pixels("test").get(np.arange(8))
    own = np.load(tmp_path / "octmnist" / "octmnist_128.npz")["test_images"][0]
    wanted = np.asarray(Image.fromarray(own).convert("RGB").resize((8, 8), Image.Resampling.LANCZOS))
    assert judged.shape == (8, 3, 8, 8)
    assert np.array_equal(judged[0], wanted.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "nowhere", r"octmnist_128\.npz is missing: put MedMNIST's file"),
        (lambda f: write_octmnist(f, side=128).write_bytes(b"x"), r"can't be read as an npz file"),
        (
            lambda f: write_octmnist(f, side=128, train_labels=np.zeros((12, 14), dtype=np.uint8)),
            r"labels of shape \(12, 14\), several an image",
        ),
    ],
)
def test_medmnist_files_that_are_none(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        OCTMNIST(data_dir=str(tmp_path)).open("train")
    assert "\n" not in str(caught.value)


def test_an_npz_with_other_keys_is_no_medmnist(tmp_path):
    path = tmp_path / "bloodmnist" / "bloodmnist.npz"
    path.parent.mkdir()
    np.savez(path, images=np.zeros((2, 28, 28), dtype=np.uint8))
    source = MedMNIST(name="bloodmnist", class_names=["a", "b"], data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"has no train_images but images: it is no file of MedMNIST's"):
        source.open("train")
    with pytest.raises(ValueError, match="side is 32; MedMNIST has 28, 64, 128, 224"):
        OCTMNIST(side=32)


# --- CelebA --------------------------------------------------------------------------------------------

_FACES = {"000001.jpg": "0", "000002.jpg": "0", "000003.jpg": "1", "000004.jpg": "2", "000005.jpg": "0"}


def write_celeba(root: Path) -> Path:
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for number, name in enumerate(_FACES):
        Image.new("RGB", (178, 218), (40 * number, 10, 20)).save(folder / "img_align_celeba" / name)
    attributes = "\n".join(f"{name} {'-1' if n % 2 else ' 1'}  1" for n, name in enumerate(_FACES))
    (folder / "list_attr_celeba.txt").write_text(f"{len(_FACES)}\nMale Wearing_Hat \n{attributes}\n")
    parts = "\n".join(f"{name} {part}" for name, part in _FACES.items())
    (folder / "list_eval_partition.txt").write_text(f"{parts}\n")
    people = "\n".join(f"{name} {2880 + n % 2}" for n, name in enumerate(_FACES))
    (folder / "identity_CelebA.txt").write_text(f"{people}\n")
    return folder


def test_celeba_by_an_attribute(tmp_path):
    write_celeba(tmp_path)
    table = CelebA(data_dir=str(tmp_path), people=True).open("train")
    assert table.labels.tolist() == [1, 0, 1]
    assert table.class_names == ("female", "male")
    assert table.users.tolist() == ["2880", "2881", "2880"]
    assert CelebA(data_dir=str(tmp_path)).open("test").labels.tolist() == [0]
    hats = CelebA(attribute="Wearing_Hat", data_dir=str(tmp_path))
    assert hats.class_names == ("not wearing hat", "wearing hat")
    assert CelebA(attribute=None, data_dir=str(tmp_path)).open("train").labels.tolist() == [-1] * 3
    data = _data(CelebA(data_dir=str(tmp_path), people=True), unit="user", images_per_user=2)
    assert len(data.train_dataset) == 2
    assert data.train_dataset[0]["images"].shape == (2, 3, 16, 16)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "list_attr_celeba.txt").unlink(), r"list_attr_celeba\.txt is missing: put CelebA's"),
        (
            lambda f: _write(f / "list_attr_celeba.txt", "1\nYoung\n"),
            "'Male', which .* does not have; it has Young",
        ),
        (
            lambda f: _write(f / "list_attr_celeba.txt", "1\nMale Young\n000001.jpg 1\n"),
            "line 3 is no image with 2 attributes",
        ),
        (
            lambda f: _write(f / "list_attr_celeba.txt", "1\nMale\n000001.jpg 1\n"),
            r"list_attr_celeba\.txt lacks 000002\.jpg",
        ),
        (lambda f: _write(f / "list_eval_partition.txt", "000003.jpg 1\n"), "puts no image into train"),
        (lambda f: _write(f / "list_eval_partition.txt", "000003.jpg\n"), "line 1 is no name and number"),
        (lambda f: (f / "identity_CelebA.txt").unlink(), r"identity_CelebA\.txt is missing"),
        (lambda f: (f / "img_align_celeba").rename(f / "other"), r"000001\.jpg is missing: unpack"),
    ],
)
def test_celeba_files_that_are_none(tmp_path, damage, message):
    damage(write_celeba(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        CelebA(data_dir=str(tmp_path), people=True).open("train")
    assert "\n" not in str(caught.value)


def test_class_names_without_an_attribute_are_refused():
    with pytest.raises(ValueError, match="an attribute makes two classes and none makes none"):
        CelebA(attribute=None, class_names=["a", "b"])


# --- Camelyon17 ----------------------------------------------------------------------------------------

_PATCHES = [  # patient, node, x, y, tumor, slide, center, split
    ("004", "4", "3328", "21792", "1", "0", "0", "0"),
    ("004", "4", "3200", "22272", "0", "0", "0", "0"),
    ("010", "1", "3168", "22272", "1", "9", "4", "1"),
    ("020", "2", "100", "200", "1", "12", "1", "0"),
    ("060", "3", "300", "400", "0", "31", "3", "0"),
    ("041", "0", "500", "600", "1", "28", "2", "1"),
    ("041", "0", "500", "632", "0", "28", "2", "0"),
]


def write_camelyon(root: Path) -> Path:
    folder = root / "camelyon17_v1.0"
    head = ",patient,node,x_coord,y_coord,tumor,slide,center,split"
    folder.mkdir(parents=True)
    rows = [f"{number},{','.join(row)}" for number, row in enumerate(_PATCHES)]
    (folder / "metadata.csv").write_text("\n".join([head, *rows, ""]))
    for patient, node, x, y, *_ in _PATCHES:
        where = f"patient_{patient}_node_{node}"
        path = folder / "patches" / where / f"patch_{where}_x_{x}_y_{y}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (96, 96), (100, 20, int(x) % 256, 255)).save(path)
    return folder


def test_camelyon_splits_by_hospital_and_users_are_patients(tmp_path):
    write_camelyon(tmp_path)
    data = _data(Camelyon17(data_dir=str(tmp_path)))
    assert data.train_dataset.pixels.labels.tolist() == [1, 0, 0]
    assert data.train_dataset.pixels.users.tolist() == ["004", "004", "060"]
    assert data.test_dataset.pixels.labels.tolist() == [1, 0]
    assert data.train_dataset.pixels.get(np.array([0]))[0, 2, 0, 0] == 3328 % 256


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "metadata.csv").unlink(), r"metadata\.csv is missing: put WILDS'"),
        (lambda f: _write(f / "metadata.csv", "patient,node\n004,4\n"), "line 2 has no x_coord; it needs"),
        (lambda f: (f / "patches").rename(f / "other"), r"\.png is missing: unpack WILDS' archive"),
        (
            lambda f: _write(
                f / "metadata.csv",
                "patient,node,x_coord,y_coord,tumor,center,split\n004,4,1,2,yes,0,0\n",
            ),
            "line 2 has tumor a text of 3 characters that begins with a letter",
        ),
        (
            lambda f: _write(
                f / "metadata.csv", "patient,node,x_coord,y_coord,tumor,center,split\n004,4,1,2,1,2,0\n"
            ),
            "has no patch of train",
        ),
    ],
)
def test_camelyon_files_that_are_none(tmp_path, damage, message):
    damage(write_camelyon(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        Camelyon17(data_dir=str(tmp_path)).open("train")
    assert "\n" not in str(caught.value)
