"""MNIST and Fashion-MNIST: 60,000 train and 10,000 test images of 28 × 28 grey pixels in ten classes."""

from pathlib import Path
from typing import ClassVar, final

from lightning_dp.data_files import data_folder
from lightning_dp.images.data.idx import open_idx
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.images.data.table import ArrayTable

_FILES: dict[Split, str] = {"train": "train", "test": "t10k"}


class _Mnist(ImageSource):
    """What both have in common: four files under one address."""

    _url: ClassVar[str]
    _payloads: ClassVar[dict[str, str]]  # sha256 of what is inside the gzip wrapper

    def __init__(self, *, data_dir: str | None = None) -> None:
        """
        Args:
            data_dir: folder that holds one named as `dataset_id` with the four idx.gz files; None =
                LIGHTNING_DP_DATA, or a cache folder of the user where that is unset.
        """
        self._data_dir = data_dir

    def files(self) -> list[Path]:
        """The folder of the data set."""
        return [data_folder(self._data_dir) / self.dataset_id]

    def open(self, split: Split) -> ArrayTable:
        folder = data_folder(self._data_dir) / self.dataset_id
        arrays = []
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{_FILES[split]}-{kind}-ubyte.gz"
            arrays.append(
                open_idx(folder / name, url=f"{self._url}/{name}", payload_sha256=self._payloads[name])
            )
        return ArrayTable(
            arrays[0],
            labels=arrays[1],
            class_names=self.class_names,
            source=str(folder / f"{_FILES[split]}-images-idx3-ubyte.gz"),
        )


@final
class MNIST(_Mnist):
    """Handwritten digits (LeCun, Cortes, Burges 1998)."""

    dataset_id = "mnist"
    class_names = tuple("0123456789")
    _url = "https://storage.googleapis.com/cvdf-datasets/mnist"
    _payloads: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }


@final
class FashionMNIST(_Mnist):
    """Garments and shoes (Xiao, Rasul, Vollgraf, arXiv 1708.07747; MIT licence)."""

    dataset_id = "fashion_mnist"
    class_names = (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    _url = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
    _payloads: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }
