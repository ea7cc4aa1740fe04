"""Weights that lie in public files of their own, which checkpoints of a `LatentDiffusion` leave out."""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from lightning_dp.adapters.lora import BASE


def leave_out_public_weights(checkpoint: dict[str, Any], module: Any) -> None:
    """Take them out of a checkpoint that is being saved, and keep the sizes of what has no file.

    Args:
        checkpoint: changed in place.
        module: a `LatentDiffusion`.
    """
    for name in _in_other_files(module):
        del checkpoint["state_dict"][name]
    settings = module.autoencoder.settings()
    configured = checkpoint.get("hyper_parameters", {}).get("autoencoder")
    if settings is not None and configured is not None:
        own = {**configured, "init_args": {**configured["init_args"], "settings": settings}}
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "autoencoder": own}


def put_in_public_weights(checkpoint: dict[str, Any], module: Any) -> None:
    """Complete a checkpoint that is being loaded by those that the module was made with."""
    state = checkpoint["state_dict"]
    own = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
    left = () if module.adapter is None else module.adapter.left_frozen(own)
    # In place: its metadata says what the weights saw.
    for name, value in _in_other_files(module, besides=left).items():
        state.setdefault(name, value)


def without_autoencoder_file(settings: dict[str, Any]) -> dict[str, Any]:
    """A module's saved settings that ask for no file of the autoencoder, whose weights the checkpoint has."""
    autoencoder = settings.get("autoencoder") or {}
    if "weights" not in autoencoder.get("init_args", {}):
        return settings
    own = {**autoencoder, "init_args": {**autoencoder["init_args"], "weights": None}}
    return {**settings, "autoencoder": own}


def _in_other_files(module: Any, *, besides: Collection[str] = ()) -> dict[str, Tensor]:
    """Those of autoencoder, text encoder and public net that no training has changed.

    Args:
        besides: parameters of the net that could train, and that a saved choice left frozen.
    """
    whole = [] if module.autoencoder.in_checkpoints else ["autoencoder."]
    whole += ["text_encoder."]
    replaced = set() if module.adapter is None else set(module.adapter.replaced())
    frozen = {
        f"net.{name}"
        for name, parameter in module.net.named_parameters()
        if name.replace(BASE, "") in module.pretrained_names
        and (not parameter.requires_grad or name in besides)
        and name not in replaced
    }
    return {
        name: value
        for name, value in module.state_dict().items()
        if name in frozen or name.startswith(tuple(whole))
    }
