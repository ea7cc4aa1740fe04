"""Classifiers that judge samples, beside the two of `downstream.py`: those that papers report.

All take images as small as 8 pixels; torchvision's have their first layer replaced by one that keeps the
side, as is usual for images of up to 64 pixels.
"""

from typing import final

import torchvision
from torch import Tensor, nn

from lightning_dp.images.downstream import WideResNet

_LARGEST_KEPT = 64


@final
class MLP(nn.Module):
    """One hidden layer of 100, on pixels as they are."""

    def __init__(self, *, image_channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(image_channels * size**2, 100), nn.ReLU(), nn.Linear(100, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, num_classes)


@final
class WideResNet40(WideResNet):
    """WRN-40-4 (Zagoruyko & Komodakis, arXiv 1605.07146), 8.9 million weights."""

    def __init__(self, *, image_channels: int, size: int, num_classes: int) -> None:
        super().__init__(image_channels=image_channels, size=size, num_classes=num_classes, depth=40)


class _OfTorchvision(nn.Module):
    """A ResNet of torchvision for small images."""

    def __init__(self, net: torchvision.models.ResNet, *, image_channels: int, size: int) -> None:
        super().__init__()
        if size <= _LARGEST_KEPT:
            net.conv1 = nn.Conv2d(image_channels, 64, 3, padding=1, bias=False)
            net.maxpool = nn.Identity()
        else:
            net.conv1 = nn.Conv2d(image_channels, 64, 7, stride=2, padding=3, bias=False)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # (B, num_classes)


@final
class ResNet(_OfTorchvision):
    """ResNet-18 (He et al., arXiv 1512.03385), 11.2 million weights."""

    def __init__(self, *, image_channels: int, size: int, num_classes: int) -> None:
        net = torchvision.models.resnet18(num_classes=num_classes)
        super().__init__(net, image_channels=image_channels, size=size)


@final
class ResNeXt(_OfTorchvision):
    """ResNeXt-50 32×4d (Xie et al., arXiv 1611.05431), 23 million weights."""

    def __init__(self, *, image_channels: int, size: int, num_classes: int) -> None:
        net = torchvision.models.resnext50_32x4d(num_classes=num_classes)
        super().__init__(net, image_channels=image_channels, size=size)
