"""What samples are good for: a classifier that sees nothing but them, judged on the real test split.

The epoch is chosen on a share of the samples themselves, which is free. Choosing it on real images would be a
release of private data, or a choice by the test split.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dp.images.data.dataset import to_floats

LEAST_SAMPLES = 100
"""That a classifier is trained on."""

_VALIDATION_SHARE = 0.1
_TEST_ROWS = 500


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self, *, image_channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * (size // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, num_classes)


class WideResNet(nn.Module):
    """WRN-16-4 (Zagoruyko & Komodakis, arXiv 1605.07146), or a deeper one. Slow without a GPU.

    Args:
        image_channels, size, num_classes: of the images.
        depth: 4 more than a multiple of 6.
    """

    def __init__(self, *, image_channels: int, size: int, num_classes: int, depth: int = 16) -> None:
        super().__init__()
        widths = (16, 64, 128, 256)
        layers: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], 3, padding=1, bias=False)]
        for level in range(3):
            for block in range((depth - 4) // 6):
                before = widths[level] if block == 0 else widths[level + 1]
                layers.append(
                    _WideBlock(before, widths[level + 1], stride=2 if level > 0 and block == 0 else 1)
                )
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, num_classes)


class _WideBlock(nn.Module):
    """Pre-activated residual block."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
        )
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.layers(x)  # (B, after, h, w)


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    net_fn: Callable[..., nn.Module],
    num_classes: int,
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A classifier of samples, as it was after the epoch that was best on a tenth of them.

    Args:
        images: (N, C, S, S) uint8 samples.
        labels: (N,) their classes.
        net_fn: `SmallCNN`, `WideResNet` or one of `judges.py`.
        num_classes: classes.
        epochs: ≥ 1.
        batch_size: ≥ 2.
        learning_rate: of AdamW at its highest, in a one-cycle schedule.
        seed: of weights, order and split.
        device: where to train.

    Raises:
        ValueError: fewer than 100 samples.
    """
    if len(images) < LEAST_SAMPLES:
        raise ValueError(
            f"{len(images)} samples can't train a classifier: take {LEAST_SAMPLES} or more, 10,000 are usual."
        )
    kind = torch.device(device).type
    with torch.random.fork_rng(devices=[] if kind == "cpu" else None):
        torch.manual_seed(seed)
        net = net_fn(image_channels=images.shape[1], size=images.shape[2], num_classes=num_classes).to(device)
        order = torch.randperm(len(images)).numpy()
        held, used = np.split(order, [int(_VALIDATION_SHARE * len(order))])
        optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate)
        batches = len(used) // batch_size
        batches, batch_size = (batches, batch_size) if batches else (1, len(used))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
        best, kept = -1.0, net.state_dict()
        for _ in range(epochs):
            net.train()
            shuffled = used[torch.randperm(len(used)).numpy()]
            for part in np.split(shuffled[: batches * batch_size], batches):
                x, y = to_floats(images[part]).to(device), torch.from_numpy(labels[part]).to(device)
                loss = F.cross_entropy(net(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            score = accuracy(net, images[held], labels[held], device=device)
            if score > best:
                best, kept = score, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return net.eval()


@torch.no_grad()
def accuracy(
    net: nn.Module, images: np.ndarray, labels: np.ndarray, *, device: torch.device | str = "cpu"
) -> float:
    """Percent of images in their own class.

    Args:
        net: a classifier.
        images: (N, C, S, S) uint8.
        labels: (N,); those of −1 don't count.
    """
    net.eval()
    known = np.flatnonzero(labels >= 0)
    right = 0
    for start in range(0, len(known), _TEST_ROWS):
        rows = known[start : start + _TEST_ROWS]
        found = net(to_floats(images[rows]).to(device)).argmax(dim=1).cpu().numpy()
        right += int((found == labels[rows]).sum())
    return 100 * right / max(1, len(known))
