"""Nets that come from a public checkpoint, with all that they were trained with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lightning_dp.diffusion.prediction import Prediction
from lightning_dp.diffusion.schedule import NoiseSchedule
from lightning_dp.images.autoencoder import Autoencoder
from lightning_dp.images.text_encoder import TextEncoder
from lightning_dp.nets.image_net import ImageNet


@dataclass(frozen=True, kw_only=True)
class Companions:
    """What a net was trained with and is of little use without.

    Attributes:
        autoencoder: of its latents.
        schedule: of its noise.
        prediction: what it predicts.
        text_encoder: of the captions that it attends to, frozen; None where it is part of the net.
    """

    autoencoder: Autoencoder
    schedule: NoiseSchedule
    prediction: Prediction
    text_encoder: TextEncoder | None


class PretrainedNet(ImageNet, ABC):
    """An `ImageNet` that reads captions, and a class as a caption of its own.

    Its weights are in files of their own, so checkpoints hold only those that train.

    Attributes:
        source: name of the public checkpoint, for tables of results.
        class_names: what its captions call the labels.
        companions: what belongs to it; not part of this module.
    """

    source: str
    class_names: tuple[str, ...]
    companions: Companions

    @abstractmethod
    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        *,
        labels: Tensor,
        states: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """As in `ImageNet`; captions take the place of the labels.

        They come as `states` (B, L, width) of a frozen encoder, or as `tokens` (B, L) for the net's own.
        """
