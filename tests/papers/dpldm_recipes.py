"""How each system of DP-LDM's recipes becomes small: files of the true forms, and overrides by stage."""

from pathlib import Path

import dpldm_toys as toys

STAGES = ("_autoencoder", "_public", "")


def _mnist(place: Path, vgg: Path) -> dict[str, list[str]]:
    toys.emnist(place / "data")
    toys.digits(place / "digits")
    net = toys.cross_attention([8, 16], attention=[True, True], size=4)
    classes = ", ".join(f"digit {number}" for number in range(10))
    source = [
        "--data.init_args.source=lightning_dp.images.data.npz.NPZ",
        f"--data.init_args.source.init_args.path={place / 'digits'}",
        f"--data.init_args.source.init_args.class_names=[{classes}]",
    ]
    return {
        "_autoencoder": toys.autoencoder(vgg, levels=4, size=32),
        "_public": net,
        "": [*net, *source],
    }


def _cifar10(place: Path, vgg: Path) -> dict[str, list[str]]:
    toys.imagenet(place / "data", side=32)
    toys.cifar10(place / "data")
    net = toys.cross_attention([4], attention=[True], size=16)
    few = "--data.init_args.empty_classes=allow"
    blocks = "--model.init_args.adapter.init_args.blocks=[2, 3]"  # of four: one layer a block, one level
    return {
        "_autoencoder": [*toys.autoencoder(vgg, levels=2, size=32), few],
        "_public": [*net, few],
        "": [*net, blocks],
    }


def _celeba64(place: Path, vgg: Path) -> dict[str, list[str]]:
    toys.imagenet(place / "data", side=64)
    toys.celeba(place / "data")
    smaller = ["--data.init_args.size=32", "--data.init_args.other_sizes=crop"]
    net = [*toys.attention([8], size=16), *smaller]
    return {"_autoencoder": [*toys.autoencoder(vgg, levels=2, size=32), *smaller], "_public": net, "": net}


def _celebahq_text(place: Path, vgg: Path) -> dict[str, list[str]]:
    for name in ("public_photographs", "public_captions", "celebahq"):
        toys.captioned(place / name)
    words = toys.text(toys.vocabulary_file(place))
    net = [*toys.cross_attention([8], attention=[True], size=8), "--data.init_args.size=16", *words]

    def path(name: str) -> str:
        return f"--data.init_args.source.init_args.path={place / name}"

    return {
        "_autoencoder": [*toys.autoencoder(vgg, levels=2, size=16), path("public_photographs")],
        "_public": [*net, path("public_captions")],
        "": [*net, path("celebahq")],
    }


MAKE = {"mnist": _mnist, "cifar10": _cifar10, "celeba64": _celeba64, "celebahq_text": _celebahq_text}
