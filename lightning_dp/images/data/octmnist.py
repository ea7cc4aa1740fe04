"""OCTMNIST: 97,477 train and 1,000 test scans of retinas in four classes (MedMNIST; Kermany et al. 2018)."""

from typing import final

from lightning_dp.images.data.medmnist import MedMNIST


@final
class OCTMNIST(MedMNIST):
    """`DATA/octmnist/octmnist.npz` of 28 pixels, or octmnist_64, octmnist_128, octmnist_224, in grey.

    Args:
        side: of the file's images; DP-SAPF takes 128.
        data_dir: as for `MedMNIST`.
    """

    def __init__(self, *, side: int = 128, data_dir: str | None = None) -> None:
        super().__init__(
            name="octmnist",
            class_names=("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
            side=side,
            data_dir=data_dir,
        )
