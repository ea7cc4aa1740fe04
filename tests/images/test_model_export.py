"""A tuned UNet and what embeds its condition, as diffusers and transformers load them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from image_support import awake, tiny_module, tiny_net
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from sd_support import write_checkpoint
from torch import Tensor
from transformers import CLIPTextModel

from lightning_dp.adapters.attention import Attention
from lightning_dp.adapters.embedder import Embedder
from lightning_dp.adapters.full import Full
from lightning_dp.adapters.norm_affine import NormAffine
from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.images.class_gaussians import ClassGaussians
from lightning_dp.images.data.image_data import ImageData
from lightning_dp.images.data.npz import NPZ
from lightning_dp.images.lora_export import has_lora
from lightning_dp.images.model_export import save_unet
from lightning_dp.images.module import LatentDiffusion
from lightning_dp.images.stable_diffusion import StableDiffusionUNet
from lightning_dp.nets.image_net import ImageNet
from lightning_dp.nets.tokenizers import Bytes, ClipTokens
from lightning_dp.nets.unet import CrossAttentionUNet, UNet

_LEVELS = {"block_out_channels": (8, 16), "attention": (True, True), "norm_groups": 4}
_NOISY, _TIMES, _LABELS = torch.randn(3, 1, 8, 8), torch.tensor([20, 500, 900]), torch.tensor([0, 2, -1])


def _output(net: ImageNet) -> Tensor:
    with torch.no_grad():
        return net.eval()(_NOISY, _TIMES, labels=_LABELS)


@pytest.mark.parametrize(
    "adapter", [Attention(), Full(), NormAffine()], ids=["Attention", "Full", "NormAffine"]
)
def test_a_unet_with_cross_attention_goes_there_and_back(adapter, tmp_path):
    net = CrossAttentionUNet(in_channels=1, size=8, num_classes=3, condition_size=8, num_heads=2, **_LEVELS)
    module = tiny_module(net=awake(net), adapter=adapter)
    assert not has_lora(module)
    assert save_unet(module, out=tmp_path) == [tmp_path / "unet", tmp_path / "embedder.safetensors"]
    again = UNet2DConditionModel.from_pretrained(tmp_path / "unet").eval()
    label = load_file(tmp_path / "embedder.safetensors")["weight"]
    states = label[[0, 2, 3]][:, None]
    with torch.no_grad():
        theirs = again(_NOISY, _TIMES, encoder_hidden_states=states).sample
    assert torch.equal(theirs, _output(net))


def test_a_unet_with_classes_of_its_own_goes_there_and_back(tmp_path):
    levels = {**_LEVELS, "head_size": 4, "scale_shift_norm": True, "residual_resampling": True}
    net = UNet(in_channels=1, size=8, num_classes=3, **levels)
    assert save_unet(tiny_module(net=awake(net)), out=tmp_path) == [tmp_path / "unet"]
    again = UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    with torch.no_grad():
        theirs = again(_NOISY, _TIMES, class_labels=torch.tensor([0, 2, 3])).sample
    assert torch.equal(theirs, _output(net))


def test_what_diffusers_has_not_is_refused(tmp_path):
    net = CrossAttentionUNet(in_channels=1, size=8, num_classes=3, residual_resampling=True, **_LEVELS)
    with pytest.raises(ValueError, match="has blocks that diffusers' UNet2DConditionModel lacks"):
        save_unet(tiny_module(net=net), out=tmp_path / "out")
    with pytest.raises(ValueError, match="trained a ImageDiT, which diffusers has no class for"):
        save_unet(tiny_module(net=tiny_net()), out=tmp_path / "out")
    plain = UNet(in_channels=1, size=8, num_classes=3, head_size=4, **_LEVELS)
    with pytest.raises(ValueError, match="a prior of class means together"):
        save_unet(tiny_module(net=plain, base_denoiser=ClassGaussians()), out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"UNet\.head_size is 16, which does not divide the width 8"):
        UNet(in_channels=1, size=8, num_classes=3, **_LEVELS)
    assert not (tmp_path / "out").exists()


# Stable Diffusion with a text encoder that trains


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sd") / "checkpoint")


def test_clips_text_encoder_trains_by_adapter_and_is_exported(checkpoint, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images, labels=np.arange(16) % 2)
    data = ImageData(NPZ(str(folder), class_names=["dark", "bright"]), size=16, mode="rgb")
    net = StableDiffusionUNet(str(checkpoint), class_names=["dark", "bright"], train_text=True)
    module = LatentDiffusion(net, adapter=Embedder(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    assert module.text_encoder is None
    assert net.tokenizer == ClipTokens(str(checkpoint))
    assert net.tokenizer != Bytes(length=24)
    frozen = StableDiffusionUNet(str(checkpoint), class_names=["dark", "bright"])
    noisy, times, labels = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, -1])
    with torch.no_grad():  # before training it is the encoder of the checkpoint
        torch.testing.assert_close(net(noisy, times, labels=labels), frozen(noisy, times, labels=labels))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[DifferentialPrivacy(noise_multiplier=4.0, delta=1e-3, expected_batch_size=8)],
    ).fit(module, datamodule=data)
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("net.text.") for name in changed)
    assert save_unet(module, out=tmp_path / "out") == [tmp_path / "out" / n for n in ("unet", "text_encoder")]
    text = CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder").eval()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").eval()
    with torch.no_grad():
        states = text(net.tokenizer(["a photo of a bright", ""]))[0]
        theirs = unet(noisy, times, encoder_hidden_states=states).sample
        torch.testing.assert_close(theirs, net.eval()(noisy, times, labels=labels))
    assert json.loads((tmp_path / "out" / "unet" / "config.json").read_text())["cross_attention_dim"] == 16
    with pytest.raises(ValueError, match="has no tokenizer/ with"):
        ClipTokens(str(tmp_path))
