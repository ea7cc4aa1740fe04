"""Public sets of 28 × 28 grey images, to pretrain on before MNIST and Fashion-MNIST.

Each has one split, `train`: nothing is judged on them. They lie in `public28/` of the data folder.
"""

from pathlib import Path
from typing import final

import numpy as np

from lightning_dp.data_files import check_digest, data_folder, ensure_file
from lightning_dp.images.data.idx import open_idx
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable

_FOLDER = "public28"


@final
class Clothing(ImageSource):
    """3,781 photographs of garments, cut out on dark ground (A. Grigorev's small clothing set, CC0)."""

    public = True
    dataset_id = "clothing_small_28"
    class_names = (
        "dress",
        "hat",
        "longsleeve",
        "outwear",
        "pants",
        "shirt",
        "shoes",
        "shorts",
        "skirt",
        "t-shirt",
    )

    def __init__(self, *, data_dir: str | None = None) -> None:
        self._data_dir = data_dir

    def files(self) -> list[Path]:
        """The one file of the set."""
        return [data_folder(self._data_dir) / _FOLDER / "clothing_small_28.npz"]

    def open(self, split: Split) -> ArrayTable | None:
        if split != "train":
            return None
        content = _npz(
            "clothing_small_28.npz",
            data_dir=self._data_dir,
            sha256="084e38f702c8673f3807e43bfbbee184a386784a5c41cade611b8740eaa42f6d",
        )
        return ArrayTable(
            content["images"],
            labels=content["labels"],
            class_names=self.class_names,
            source="clothing_small_28.npz",
        )


@final
class Omniglot(ImageSource):
    """4,840 handwritten characters of several alphabets (Lake et al. 2015, MIT licence); unlabelled here."""

    public = True
    dataset_id = "omniglot_small_28"
    class_names = ()

    def __init__(self, *, data_dir: str | None = None) -> None:
        self._data_dir = data_dir

    def files(self) -> list[Path]:
        """The one file of the set."""
        return [data_folder(self._data_dir) / _FOLDER / "omniglot_small_28.npz"]

    def open(self, split: Split) -> ArrayTable | None:
        if split != "train":
            return None
        content = _npz(
            "omniglot_small_28.npz",
            data_dir=self._data_dir,
            sha256="87457b22619f6f48a2d3f394090cf17cd85439668149bb081769cff9367186ff",
        )
        images = content["images"]
        return ArrayTable(
            images, labels=np.full(len(images), -1), class_names=(), source="omniglot_small_28.npz"
        )


@final
class KannadaDigits(ImageSource):
    """20,240 handwritten Kannada digits: the test split of Kannada-MNIST and Dig-MNIST (arXiv 1908.01242).

    They are digits, written in another script than MNIST's.
    """

    public = True
    dataset_id = "kannada_digits"
    class_names = tuple("0123456789")
    _files = (
        (
            "X_kannada_MNIST_test-idx3-ubyte.gz",
            "be3a7f7fd24b3eb62f28ab1e3f9e5a380738e87000f99417c14f94ca89616cf4",
            "y_kannada_MNIST_test-idx1-ubyte.gz",
            "2a4fb3eec0877aa3d4ab80d8f59374733af9b2b2966e8be0e50efe715f443a4d",
        ),
        (
            "X_dig_MNIST-idx3-ubyte.gz",
            "80f10e9328072991d61cc2db57a8793ae4ffcf030aa8b73a37dd64787da464ae",
            "y_dig_MNIST-idx1-ubyte.gz",
            "270a721d62dee2a1e9459e0192e425c086de49f1f9610fb3d7b9f457e3dd83fe",
        ),
    )

    def __init__(self, *, data_dir: str | None = None) -> None:
        self._data_dir = data_dir

    def files(self) -> list[Path]:
        """Two of images and two of labels."""
        return [data_folder(self._data_dir) / _FOLDER / file for one in self._files for file in one[::2]]

    def open(self, split: Split) -> ArrayTable | None:
        if split != "train":
            return None
        folder = data_folder(self._data_dir) / _FOLDER
        images, labels = [], []
        for image_file, image_digest, label_file, label_digest in self._files:
            images.append(open_idx(folder / image_file, url=None, payload_sha256=image_digest))
            labels.append(open_idx(folder / label_file, url=None, payload_sha256=label_digest))
        return ArrayTable(
            np.concatenate(images),
            labels=np.concatenate(labels),
            class_names=self.class_names,
            source="Kannada digits",
        )


@final
class NotMNIST(ImageSource):
    """10,000 letters A to J in many typefaces (Y. Bulatov's notMNIST, as D. Flanagan's idx files)."""

    public = True
    dataset_id = "notmnist"
    class_names = tuple("ABCDEFGHIJ")
    _url = "https://raw.githubusercontent.com/davidflanagan/notMNIST-to-MNIST/master"

    def __init__(self, *, data_dir: str | None = None) -> None:
        self._data_dir = data_dir

    def files(self) -> list[Path]:
        """One of images and one of labels."""
        return [
            data_folder(self._data_dir) / _FOLDER / f"notmnist-t10k-{kind}-ubyte.gz"
            for kind in ("images-idx3", "labels-idx1")
        ]

    def open(self, split: Split) -> ArrayTable | None:
        if split != "train":
            return None
        folder = data_folder(self._data_dir) / _FOLDER
        images = open_idx(
            folder / "notmnist-t10k-images-idx3-ubyte.gz",
            url=f"{self._url}/t10k-images-idx3-ubyte.gz",
            payload_sha256="8e7f38ae95cc8f48e0986175ffc9137e5007ebcf3d8fdf6656c904eb9dab198b",
        )
        labels = open_idx(
            folder / "notmnist-t10k-labels-idx1-ubyte.gz",
            url=f"{self._url}/t10k-labels-idx1-ubyte.gz",
            payload_sha256="5f8e6012f2ce730700d8d05fca098bc47f71d25b890e4bec7ac5ebfd614a4001",
        )
        return ArrayTable(images, labels=labels, class_names=self.class_names, source="notMNIST")


def _npz(name: str, *, data_dir: str | None, sha256: str) -> dict[str, np.ndarray]:
    def check(content: bytes, where: str) -> None:
        check_digest(content, expected=sha256, method="sha256", where=where)

    path = ensure_file(data_folder(data_dir) / _FOLDER / name, url=None, check=check)
    check(path.read_bytes(), str(path))
    with np.load(path, allow_pickle=False) as content:
        return {key: content[key] for key in ("images", "labels") if key in content}
