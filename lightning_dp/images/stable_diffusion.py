"""The UNet of a Stable Diffusion checkpoint (1.x and 2.x; Rombach et al. 2022, arXiv 2112.10752)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from lightning_dp.diffusion.saved_scheduler import schedule_of
from lightning_dp.images.diffusers_autoencoder import DiffusersAutoencoder
from lightning_dp.images.diffusers_files import load_weights, read_config
from lightning_dp.images.pretrained import Companions, PretrainedNet
from lightning_dp.images.text_encoder import TextEncoder
from lightning_dp.nets.conditioning.path import ConditionPath
from lightning_dp.nets.image_net import class_rows
from lightning_dp.nets.tokenizers import ClipTokens, Tokenizer
from lightning_dp.nets.unet import unet_paths

_PARTS = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}


class StableDiffusionUNet(PretrainedNet):
    """Loads a folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/; nothing is downloaded.

    A class is steered by a prompt, which costs no privacy: the classes' names are public. The states of all
    prompts are computed here, once.

    Legend: B rows, c latent channels, s their side, L tokens, W width of the text encoder.

    Args:
        path: the checkpoint's folder, as diffusers saves it.
        size: s, of the images an eighth; None for the checkpoint's own.
        image_channels: 1 or 3; grey images are three equal channels to the autoencoder.
        class_names: of the labels, in the data's order; [] for a model without classes.
        template: a class's prompt; {class} stands for its name.
        train_text: whether the text encoder belongs to what an adapter may choose, as what embeds the
            condition. Captions then need `data.tokenizer`, a `ClipTokens` of the same folder.

    Raises:
        ValueError: a file is missing, or the checkpoint has another layout.
    """

    prompts: Tensor

    def __init__(
        self,
        path: str,
        *,
        size: int | None = None,
        image_channels: int = 3,
        class_names: Sequence[str] = (),
        template: str = "a photo of a {class}",
        train_text: bool = False,
    ) -> None:
        folder = Path(path).expanduser()
        _check_layout(folder)
        if "{class}" not in template:
            raise ValueError(
                f"StableDiffusionUNet.template is {template!r}, in which {{class}} does not occur: all "
                'classes would be one; "a photo of a {class}" is usual.'
            )
        text_encoder = TextEncoder(folder)
        unet = load_weights(UNet2DConditionModel, folder / "unet")
        _check_unet(unet.config, text_width=text_encoder.width, where=folder / "unet" / "config.json")
        autoencoder = DiffusersAutoencoder(str(folder / "vae"), image_channels=image_channels)
        super().__init__(
            in_channels=unet.config.in_channels,
            size=unet.config.sample_size if size is None else size,
            num_classes=len(class_names),
        )
        schedule, prediction = schedule_of(read_config(folder / "scheduler" / "scheduler_config.json"))
        self.source = folder.resolve().name
        self.class_names = tuple(class_names)
        self.companions = Companions(
            autoencoder=autoencoder,
            schedule=schedule,
            prediction=prediction,
            text_encoder=None if train_text else text_encoder,
        )
        self.unet: Any = unet
        self.text = TextModel(text_encoder) if train_text else None
        self._tokenizer = ClipTokens(str(folder)) if train_text else None
        # The last row, the empty prompt, is "no class".
        prompts = [*(template.replace("{class}", name) for name in class_names), ""]
        # (classes + 1, L) tokens for an encoder that trains, (classes + 1, L, W) states for a frozen one.
        known = text_encoder(prompts) if self._tokenizer is None else self._tokenizer(prompts)
        self.register_buffer("prompts", known, persistent=False)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def condition_modules(self) -> list[nn.Module]:
        """What makes the condition, as `nets.conditioning.path` asks for it."""
        return [self.unet.time_embedding, *([] if self.text is None else [self.text])]

    def condition_paths(self) -> dict[ConditionPath, list[nn.Module]]:
        """Every way of time and text, as `nets.conditioning.path` asks for them."""
        return {ConditionPath.ENCODER: self.condition_modules(), **unet_paths(self.unet)}

    def output_modules(self) -> list[nn.Module]:
        """The last layers, as adapters ask for them."""
        return [self.unet.conv_norm_out, self.unet.conv_out]

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        *,
        labels: Tensor,
        states: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        if states is None:
            if tokens is None:
                tokens = self.prompts[class_rows(labels, num_classes=self.num_classes)]  # (B, L), or states
            states = tokens if self.text is None else self.text(tokens)  # (B, L, W)
        return self.unet(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]  # (B, c, s, s)


class TextModel(nn.Module):
    """A checkpoint's text model as a part of the net."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        if encoder.hides_padding:
            raise ValueError(
                "StableDiffusionUNet.train_text is true, but this text encoder hides padding, which its "
                "tokens alone don't tell: set train_text to false."
            )
        self.model = encoder.model.requires_grad_(True)

    def embedder_modules(self) -> list[nn.Module]:
        """Itself: what embeds the condition."""
        return [self]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[0]  # (B, L, W)


def _check_layout(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"StableDiffusionUNet.path={folder} is not a folder: give the checkpoint's own, with "
            "model_index.json in it."
        )
    index = read_config(folder / "model_index.json")
    for part, kind in _PARTS.items():
        found = (index.get(part) or [None, None])[1]
        if found != kind:
            raise ValueError(
                f"{folder / 'model_index.json'} describes a {index.get('_class_name')} whose {part} is "
                f"{found or 'missing'}; it has to be a {kind}, as in Stable Diffusion 1.x and 2.x."
            )


def _check_unet(config: Any, *, text_width: int, where: Path) -> None:
    if config.in_channels != config.out_channels:
        raise ValueError(
            f"{where} has {config.in_channels} channels in and {config.out_channels} out: inpainting and "
            "depth models read more than the image; take a text-to-image checkpoint."
        )
    for field in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(field) is not None:
            raise ValueError(
                f"{where} sets {field} to {config[field]!r}, a further condition that Stable Diffusion 1.x "
                "and 2.x don't have (XL has): take one of those."
            )
    if config.cross_attention_dim != text_width:
        raise ValueError(
            f"{where} attends to text of width {config.cross_attention_dim}, and text_encoder/ makes "
            f"{text_width}: the parts are from different checkpoints; copy the folder again."
        )
