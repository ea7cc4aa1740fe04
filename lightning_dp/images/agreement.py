"""Whether net, autoencoder and data of a fit belong together."""

from typing import Any

from lightning_dp.images.pretrained import PretrainedNet
from lightning_dp.protocols import HasCaptions, HasImages, Tokenises, provides


def check_agreement(module: Any, data: Any) -> None:
    """Raise ValueError unless a `LatentDiffusion` and its data agree on sizes, classes and captions.

    Args:
        module: with `net`, `autoencoder` and `text_encoder`.
        data: its data module, declared, not opened; one that states no `size` is not checked.
    """
    if not provides(data, HasImages):
        return
    latent_size = module.autoencoder.latent_size(data.size)
    if latent_size != module.net.size:
        raise ValueError(
            f"the net's size is {module.net.size}, but images of {data.size} pixels have latents of side "
            f"{latent_size}: give net.size that number."
        )
    if 0 < module.net.num_classes < data.num_classes:
        raise ValueError(
            f"the net's num_classes is {module.net.num_classes}, but the data has {data.num_classes} "
            "classes: give net.num_classes that number, or 0 to learn no classes."
        )
    if isinstance(module.net, PretrainedNet) and module.net.class_names not in ((), data.class_names):
        raise ValueError(
            f"the net's class_names are {list(module.net.class_names)}, but the data has "
            f"{list(data.class_names)}: give net.class_names those, in that order, or [] to learn no "
            "classes."
        )
    if not (provides(data, HasCaptions) and data.has_captions):
        return
    if module.text_encoder is None and module.net.tokenizer is None:
        raise ValueError(
            f"the images of {data.dataset_id} come with captions, but {type(module.net).__name__} reads "
            "none: take StableDiffusionUNet or a CrossAttentionUNet with text, or set the source's "
            "captions off."
        )
    tokenizer = data.tokenizer if provides(data, Tokenises) else None
    if tokenizer != module.net.tokenizer:
        raise ValueError(
            f"data.tokenizer is {tokenizer} and that of the net {module.net.tokenizer}, but a caption "
            "has to be the same numbers to both: give both the same, or both none."
        )
