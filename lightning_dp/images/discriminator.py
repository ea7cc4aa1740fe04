"""Whether patches of an image look real: the adversary of an autoencoder's decoder. Public images only."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


@final
class PatchDiscriminator(nn.Module):
    """Convolutions that give one score a patch (Isola et al. 2017, arXiv 1611.07004), with the hinge loss.

    Args:
        image_channels: C.
        width: of the first layer; it doubles from layer to layer, up to eight times.
        num_layers: ≥ 1 halvings of the side: 3 see patches of 70 pixels.
    """

    def __init__(self, *, image_channels: int = 3, width: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(
                f"PatchDiscriminator.num_layers is {num_layers}; it must be at least 1: 3 is usual."
            )
        layers: list[nn.Module] = [
            nn.Conv2d(image_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        before = width
        for number in range(1, num_layers + 1):
            after = width * min(2**number, 8)
            stride = 1 if number == num_layers else 2
            layers += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, padding=1))
        for layer in self.modules():  # as GANs start: arXiv 1511.06434, §3
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) to (B, 1, p, p), high where a patch looks real."""
        return self.layers(images)

    def generator_loss(self, decoded: Tensor) -> Tensor:
        """What the decoder has to make small; the weights here get no gradient of it."""
        frozen = {name: weight.detach() for name, weight in self.named_parameters()}
        return -functional_call(self, frozen, (decoded,)).mean()

    def own_loss(self, real: Tensor, decoded: Tensor) -> Tensor:
        """The hinge loss; nothing before this network gets a gradient of it."""
        return 0.5 * (F.relu(1 - self(real.detach())).mean() + F.relu(1 + self(decoded.detach())).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, *, layer: nn.Parameter) -> Tensor:
    """The ratio of both losses' gradients in the decoder's last layer, within [0, 10⁴] (VQGAN, eq. 7).

    Args:
        reconstruction, adversarial: scalars whose graphs stay.
        layer: the decoder's last weights.
    """
    gradients = [
        torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)
    ]
    wanted, given = (gradient.norm() for gradient in gradients)
    return (wanted / (given + 1e-4)).clamp(0.0, 1e4).detach()
