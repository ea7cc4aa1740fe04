"""The first stages of latent diffusion (Rombach et al. 2022, arXiv 2112.10752, §3.1), to be trained here.

Layers are those of diffusers. DP-LDM (arXiv 2305.15759) trains the KL kind on public images for MNIST,
CIFAR-10 and CelebA; the VQ kind (VQGAN, arXiv 2012.09841) is that of its CelebA-HQ.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from lightning_dp.images.autoencoder import Reconstruction, TrainableAutoencoder, gaussian_penalty


class _Layers(TrainableAutoencoder):
    """What both kinds have in common.

    Args:
        image_channels: C.
        image_size: S, a multiple of 2^(levels − 1).
        num_channels: c.
        block_out_channels: width of each level, from fine to coarse.
        attention: for each level, whether it has self-attention; between encoder and decoder it always is.
        layers_per_block: residual layers of each level.
        norm_groups: groups of each GroupNorm; divides every width.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        image_size: int,
        num_channels: int,
        block_out_channels: Sequence[int],
        attention: Sequence[bool],
        layers_per_block: int,
        norm_groups: int,
    ) -> None:
        super().__init__(image_size=image_size, num_channels=num_channels)
        name, levels = type(self).__name__, len(block_out_channels)
        if levels != len(attention) or not levels:
            raise ValueError(
                f"{name}.attention has {len(attention)} entries and block_out_channels {levels}; give one of "
                "each per level, from fine to coarse."
            )
        self._factor = 2 ** (levels - 1)
        if image_size % self._factor:
            raise ValueError(
                f"{name}.image_size is {image_size}, which {levels} levels can't halve {levels - 1} times: "
                "take fewer levels, or images of another size."
            )
        wrong = [width for width in block_out_channels if width % norm_groups]
        if wrong:
            raise ValueError(
                f"{name}.norm_groups is {norm_groups}, which does not divide the width {wrong[0]} of "
                "block_out_channels: choose a common divisor."
            )
        down = ("AttnDownEncoderBlock2D" if own else "DownEncoderBlock2D" for own in attention)
        up = ("AttnUpDecoderBlock2D" if own else "UpDecoderBlock2D" for own in reversed(attention))
        self.model: Any = self._make(
            in_channels=image_channels,
            out_channels=image_channels,
            sample_size=image_size,
            latent_channels=num_channels,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_groups,
        )

    @abstractmethod
    def _make(self, **settings: Any) -> Any:
        """The model of diffusers."""

    def latent_size(self, size: int) -> int:
        if size != self.image_size:
            raise ValueError(
                f"{type(self).__name__}.image_size is {self.image_size}, but the images have a side of "
                f"{size} pixels: give both the same."
            )
        return size // self._factor

    def decode_raw(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample  # (B, C, S, S)

    def last_layer(self) -> nn.Parameter:
        return self.model.decoder.conv_out.weight


@final
class KLAutoencoder(_Layers):
    """`AutoencoderKL`: latents are drawn around a mean, with a little pressure towards N(0, 1).

    Args:
        image_channels, image_size, num_channels: C, S and c; S is a multiple of 2^(levels − 1).
        block_out_channels: width of each level, from fine to coarse.
        attention: for each level, whether it has self-attention; between encoder and decoder it always is.
        layers_per_block: residual layers of each level.
        norm_groups: groups of each GroupNorm; divides every width.
        weights: a checkpoint of `AutoencoderTraining` with the same settings, or None.
    """

    def __init__(
        self,
        *,
        image_channels: int = 3,
        image_size: int = 32,
        num_channels: int = 3,
        block_out_channels: Sequence[int] = (128, 256),
        attention: Sequence[bool] = (False, True),
        layers_per_block: int = 2,
        norm_groups: int = 32,
        weights: str | None = None,
    ) -> None:
        super().__init__(
            image_channels=image_channels,
            image_size=image_size,
            num_channels=num_channels,
            block_out_channels=block_out_channels,
            attention=attention,
            layers_per_block=layers_per_block,
            norm_groups=norm_groups,
        )
        if weights is not None:
            self.load(weights)

    def _make(self, **settings: Any) -> Any:
        return AutoencoderKL(**settings)

    def raw_latents(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latent_dist.mean  # (B, c, s, s)

    def reconstruct(self, images: Tensor) -> Reconstruction:
        posterior = self.model.encode(images).latent_dist
        penalty = gaussian_penalty(posterior.mean, posterior.logvar, num_values=images[0].numel())
        decoded = self.decode_raw(posterior.sample())  # (B, C, S, S)
        return Reconstruction(images=decoded, latents=posterior.mean, penalty=penalty)


@final
class VQAutoencoder(_Layers):
    """`VQModel`: the decoder sees the nearest entries of a codebook; diffused are the latents before that.

    Args:
        image_channels, image_size, num_channels: C, S and c; S is a multiple of 2^(levels − 1).
        codebook_size: entries, ≥ 2.
        block_out_channels: width of each level, from fine to coarse.
        attention: for each level, whether it has self-attention; between encoder and decoder it always is.
        layers_per_block: residual layers of each level.
        norm_groups: groups of each GroupNorm; divides every width.
        weights: a checkpoint of `AutoencoderTraining` with the same settings, or None.
    """

    def __init__(
        self,
        *,
        image_channels: int = 3,
        image_size: int = 256,
        num_channels: int = 3,
        codebook_size: int = 8192,
        block_out_channels: Sequence[int] = (128, 256, 512),
        attention: Sequence[bool] = (False, False, False),
        layers_per_block: int = 2,
        norm_groups: int = 32,
        weights: str | None = None,
    ) -> None:
        if codebook_size < 2:
            raise ValueError(
                f"VQAutoencoder.codebook_size is {codebook_size}; it must be at least 2, and 8192 is usual."
            )
        self._codebook_size = codebook_size
        super().__init__(
            image_channels=image_channels,
            image_size=image_size,
            num_channels=num_channels,
            block_out_channels=block_out_channels,
            attention=attention,
            layers_per_block=layers_per_block,
            norm_groups=norm_groups,
        )
        if weights is not None:
            self.load(weights)

    def _make(self, **settings: Any) -> Any:
        return VQModel(num_vq_embeddings=self._codebook_size, **settings)

    def raw_latents(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latents  # (B, c, s, s)

    def reconstruct(self, images: Tensor) -> Reconstruction:
        latents = self.raw_latents(images)  # (B, c, s, s)
        decoded = self.model.decode(latents)
        # Commitment and codebook, a mean over the latents' values (arXiv 1711.00937, eq. 3).
        return Reconstruction(images=decoded.sample, latents=latents, penalty=decoded.commit_loss)
