"""How alike two images look: LPIPS (Zhang et al. 2018, arXiv 1801.03924), on weights of this machine.

VGG-16's features are torchvision's file `vgg16-397923af.pth`, in `weights/` of the data folder unless another
is named. The five linear layers are those of LPIPS, which torchmetrics brings along.
"""

import pickle
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
import torchmetrics
import torchvision
from torch import Tensor, nn

from lightning_dp.data_files import data_folder

_FILE = "vgg16-397923af.pth"
_LINEAR = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
_ENDS = (4, 9, 16, 23, 30)  # behind relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3
_LEAST_SIZE = 16
# Of ImageNet, for values in [−1, 1] (arXiv 1801.03924, code).
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@final
class PerceptualLoss(nn.Module):
    """Differences of normalised features of five layers, weighed by LPIPS's linear layers. Frozen.

    Args:
        weights: file of VGG-16's features in torchvision's names; None for the data folder's.
        linear: file of the five linear layers in LPIPS's names; None for those of torchmetrics.

    Raises:
        ValueError: a file is missing or holds something else; nothing is downloaded.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, weights: str | None = None, linear: str | None = None) -> None:
        super().__init__()
        path = Path(weights).expanduser() if weights else data_folder(None) / "weights" / _FILE
        with torch.device("meta"):  # its classifier is 0.5 GB that nobody needs
            features: nn.Module = torchvision.models.vgg16().features[: _ENDS[-1]]
        state = _read(path, field="weights", what="VGG-16's features")
        own = {name.removeprefix("features."): value for name, value in state.items() if "features." in name}
        self.features = _filled(features, own, path=path)
        lines = _read(Path(linear) if linear else _LINEAR, field="linear", what="LPIPS's linear layers")
        self.linear = nn.ParameterList([_line(lines, layer, linear or str(_LINEAR)) for layer in range(5)])
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(B, C, S, S) twice, C = 1 or 3, in [−1, 1], to distances (B,).

        Raises:
            ValueError: S is below 16 pixels.
        """
        if images.shape[-1] < _LEAST_SIZE:
            raise ValueError(
                f"PerceptualLoss sees images of {images.shape[-1]} pixels, and VGG-16 halves them four "
                "times: take images of 16 pixels or more, or set perceptual to null."
            )
        x, y = ((part.expand(-1, 3, -1, -1) - self.shift) / self.scale for part in (images, others))
        total = images.new_zeros(len(images))  # (B,)
        start = 0
        for end, weight in zip(_ENDS, self.linear, strict=True):
            for layer in self.features[start:end]:  # type: ignore[index]
                x, y = layer(x), layer(y)  # (B, d, h, w) each
            start = end
            difference = (_unit(x) - _unit(y)).square()  # (B, d, h, w)
            total = total + F.conv2d(difference, weight).mean(dim=(1, 2, 3))
        return total


def _unit(x: Tensor) -> Tensor:
    """Of length 1 along the channels."""
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


def _read(path: Path, *, field: str, what: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(
            f"PerceptualLoss.{field}: {path} is missing, and {what} are never downloaded: put the file "
            "there, name another, or set perceptual to null."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"PerceptualLoss.{field}: {path} can't be read as weights ({type(error).__name__}): copy it "
            "again."
        ) from error
    return {str(name): value for name, value in state.items()}


def _filled(features: nn.Module, state: dict[str, Tensor], *, path: Path) -> nn.Module:
    own = features.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    if fitting.keys() != own.keys():
        missing = sorted(own.keys() - fitting.keys())[0]
        raise ValueError(
            f"PerceptualLoss.weights: {path} has no features.{missing} of a VGG-16: take "
            f"torchvision's {_FILE}."
        )
    features.to_empty(device="cpu")
    features.load_state_dict(fitting)
    for layer in features.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # what is compared must not be overwritten
    return features


def _line(lines: dict[str, Tensor], layer: int, path: str) -> nn.Parameter:
    name = f"lin{layer}.model.1.weight"
    if name not in lines:
        raise ValueError(
            f"PerceptualLoss.linear: {path} has no {name}: take LPIPS's vgg.pth, or null for "
            "torchmetrics' own."
        )
    return nn.Parameter(lines[name].float())  # (1, d, 1, 1)
