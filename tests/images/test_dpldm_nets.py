"""DP-LDM's networks are as large as published (arXiv 2305.15759), by the recipes themselves."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from lightning_dp.adapters.attention import Attention, transformer_blocks
from lightning_dp.images.autoencoder import TrainableAutoencoder
from lightning_dp.nets.image_net import ImageNet

PAPERS = Path(__file__).parents[2] / "conf" / "experiment" / "papers"


def _made(kind: type, settings: dict) -> nn.Module:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "part")
    with torch.device("meta"):  # sizes, not weights
        return parser.instantiate_classes(parser.parse_object({"part": settings})).part


def _recipe(name: str) -> dict:
    return yaml.safe_load((PAPERS / f"{name}.yaml").read_text())["model"]["init_args"]


def _net(name: str) -> ImageNet:
    return _made(ImageNet, _recipe(name)["net"])


def _millions(*parts: nn.Module) -> float:
    return sum(p.numel() for part in parts for p in part.parameters()) / 1e6


def test_mnist():
    net = _net("dpldm_mnist")
    blocks = transformer_blocks(net)
    assert len(blocks) == 7
    assert _millions(net) == pytest.approx(4.6, abs=0.05)
    assert _millions(*blocks) == pytest.approx(1.6, abs=0.05)
    assert net.label.weight.shape == (27, 5)  # 26 letters, and no class


def test_cifar10():
    net = _net("dpldm_cifar10")
    blocks = transformer_blocks(net)
    assert len(blocks) == 16
    assert _millions(net) == pytest.approx(90.8, abs=0.05)
    chosen = _recipe("dpldm_cifar10")["adapter"]["init_args"]["blocks"]
    assert [number + 1 for number in chosen] == list(range(9, 17))
    assert _millions(*(blocks[number] for number in chosen)) == pytest.approx(9.3, abs=0.05)
    assert _millions(net.label) == pytest.approx(0.5, abs=0.05)
    Attention(blocks=chosen).apply(net)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6
    assert trained == pytest.approx(9.8, abs=0.05)


def test_celeba64():
    net = _net("dpldm_celeba64")
    blocks = transformer_blocks(net)
    assert len(blocks) == 16
    assert _millions(net) == pytest.approx(72.2, abs=0.05)
    assert _millions(*blocks) == pytest.approx(8.0, abs=0.05)


def test_celebahq_text(tmp_path):
    """The UNet of latent diffusion's text2img-large, and its text encoder for 30,522 word pieces."""
    settings = _recipe("dpldm_celebahq_text")["net"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(30_518))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = settings["init_args"]["text"]["init_args"]["tokenizer"]
    tokenizer["init_args"]["vocabulary"] = str(tmp_path / "vocab.txt")
    net = _made(ImageNet, settings)
    assert len(transformer_blocks(net)) == 16
    assert _millions(net.unet) == pytest.approx(872.3, abs=0.05)
    assert _millions(net.text) == pytest.approx(542.9, abs=0.05)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "celeba64", "celebahq_text"])
def test_stages_fit_each_other(name):
    """One net in both stages of diffusion, on the latents of the autoencoder, under one schedule."""
    public, private = _recipe(f"dpldm_{name}_public"), _recipe(f"dpldm_{name}")
    assert public["net"] == private["net"]
    assert public["schedule"] == private["schedule"]
    autoencoder = _made(TrainableAutoencoder, _recipe(f"dpldm_{name}_autoencoder")["autoencoder"])
    arguments = private["net"]["init_args"]
    assert autoencoder.num_channels == arguments["in_channels"]
    assert autoencoder.latent_size(autoencoder.image_size) == arguments["size"]
