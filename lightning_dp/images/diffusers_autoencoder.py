"""Autoencoders of diffusers by path: a folder as diffusers saves it, or TAESD's two weight files."""

from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from lightning_dp.images.autoencoder import Autoencoder
from lightning_dp.images.diffusers_files import load_weights, read_config

_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


class DiffusersAutoencoder(Autoencoder):
    """`AutoencoderKL`, `AutoencoderTiny` or `VQModel`; nothing is downloaded.

    Of a `VQModel` the latents before the codebook are diffused, and the decoder looks up its entries, as in
    latent diffusion.

    Checkpoints leave its weights out; `WeightsOrigin` between two stages needs `fresh: ["^autoencoder"]`.
    Grey images become three equal channels on the way in, and their mean on the way out.

    Args:
        path: a folder with config.json and weights, such as `vae/` of a Stable Diffusion checkpoint; or a
            file of TAESD's encoder, whose name holds "encoder", with the decoder beside it.
        image_channels: C, 1 or 3.
    """

    in_checkpoints = False  # tens to hundreds of MB that never change; the path is in the configuration

    def __init__(self, path: str, *, image_channels: int = 3) -> None:
        super().__init__()
        if image_channels not in (1, 3):
            raise ValueError(f"DiffusersAutoencoder.image_channels is {image_channels}; it must be 1 or 3.")
        self._grey = image_channels == 1
        self.model: Any = _tiny(Path(path)) if path.endswith(".safetensors") else _folder(Path(path))
        config = self.model.config
        self.num_channels = int(config.get("vq_embed_dim") or config.latent_channels)
        self._factor = 2 ** (len(config.block_out_channels) - 1)
        self._scale = float(config.scaling_factor or 1.0)
        self._shift = float(config.get("shift_factor") or 0.0)

    def latent_size(self, size: int) -> int:
        if size % self._factor:
            raise ValueError(
                f"the images have a side of {size} pixels, which this autoencoder can't divide by "
                f"{self._factor}: set data.size to a multiple."
            )
        return size // self._factor

    def encode(self, images: Tensor) -> Tensor:
        if self._grey:
            images = images.expand(-1, 3, -1, -1)  # (B, 3, S, S)
        encoded = self.model.encode(images)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents - self._shift) * self._scale  # (B, c, s, s)

    def decode(self, latents: Tensor) -> Tensor:
        images = self.model.decode(latents / self._scale + self._shift).sample  # (B, 3, S, S)
        return images.mean(dim=1, keepdim=True) if self._grey else images


def _folder(path: Path) -> Any:
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(
            f"DiffusersAutoencoder.path={path} has no config.json: give the folder of an autoencoder as "
            "diffusers saves it (vae/ inside a pipeline), or TAESD's encoder file."
        )
    name = read_config(config).get("_class_name")
    if name not in _CLASSES:
        raise ValueError(f"{config} describes a {name}; it has to be one of {', '.join(_CLASSES)}.")
    return load_weights(getattr(diffusers, name), path)


def _tiny(encoder: Path) -> Any:
    decoder = encoder.with_name(encoder.name.replace("encoder", "decoder"))
    if decoder == encoder or not encoder.is_file() or not decoder.is_file():
        raise ValueError(
            f"DiffusersAutoencoder.path={encoder} must name TAESD's encoder, with the decoder beside it as "
            f"{decoder.name}: NAME_encoder.safetensors and NAME_decoder.safetensors."
        )
    # diffusers numbers the decoder's layers from the first one with weights, TAESD's files from the clamp.
    state = {f"encoder.layers.{name}": value for name, value in load_file(encoder).items()}
    for name, value in load_file(decoder).items():
        number, _, rest = name.partition(".")
        state[f"decoder.layers.{int(number) - 1}.{rest}"] = value
    model: Any = AutoencoderTiny(latent_channels=len(state["encoder.layers.14.bias"]))
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model
