"""Made-up files of the forms that DP-LDM's recipes read, and how each recipe is made small."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

_RNG = np.random.default_rng(0)
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "face", "smiles", "serious")

# Of every stage.
SMALL = (
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--run.wandb=disabled",
    "--data.init_args.batch_size=8",
)
_AUTOENCODER = "--model.init_args.autoencoder.init_args."
_NET = "--model.init_args.net.init_args."
_LEVELS = (
    f"{_NET}norm_groups=4",
    f"{_NET}layers_per_block=1",
    "--model.init_args.sampler.init_args.num_steps=2",
)
# Calibration would take longer than all else.
PRIVATE = (
    "--privacy.target_epsilon=null",
    "--privacy.noise_multiplier=4",
    "--privacy.delta=1e-2",
    "--privacy.expected_batch_size=8",
    "--privacy.physical_batch_size=8",
)


def autoencoder(vgg: Path, *, levels: int, size: int) -> list[str]:
    """What makes an autoencoder of `levels` levels small; the adversary plays from the second step on."""
    return [
        f"{_AUTOENCODER}block_out_channels={[4] * levels}",
        f"{_AUTOENCODER}attention={json.dumps([False] * (levels - 1) + [True])}",
        f"{_AUTOENCODER}norm_groups=4",
        f"{_AUTOENCODER}layers_per_block=1",
        f"{_AUTOENCODER}image_size={size}",
        f"--model.init_args.perceptual.init_args.weights={vgg}",
        "--model.init_args.discriminator.init_args.width=4",
        "--model.init_args.discriminator.init_args.num_layers=1",
        "--model.init_args.discriminator_start=1",
        f"--data.init_args.size={size}",
        "--data.init_args.batch_size=4",  # VGG-16 is as large as ever
    ]


def cross_attention(widths: list[int], *, attention: list[bool], size: int) -> list[str]:
    """What makes a net with spatial transformers small."""
    return [
        f"{_NET}block_out_channels={widths}",
        f"{_NET}attention={json.dumps(attention)}",
        f"{_NET}num_heads=2",
        f"{_NET}size={size}",
        *_LEVELS,
    ]


def attention(widths: list[int], *, size: int) -> list[str]:
    """What makes a net without classes small."""
    return [
        f"{_NET}block_out_channels={widths}",
        f"{_NET}attention={json.dumps([True] * len(widths))}",
        f"{_NET}head_size=4",
        f"{_NET}size={size}",
        *_LEVELS,
    ]


def text(vocabulary: Path) -> list[str]:
    """What makes a text encoder small, and its tokens those of a file."""
    inner = "text.init_args."
    return [
        f"{_NET}{inner}width=8",
        f"{_NET}{inner}depth=1",
        f"{_NET}{inner}num_heads=2",
        f"{_NET}{inner}head_size=4",
        f"{_NET}{inner}tokenizer.init_args.vocabulary={vocabulary}",
        f"{_NET}{inner}tokenizer.init_args.length=6",
        f"--data.init_args.tokenizer.init_args.vocabulary={vocabulary}",
        "--data.init_args.tokenizer.init_args.length=6",
    ]


# files


def vgg_file(folder: Path) -> Path:
    """Random features of VGG-16 in torchvision's names."""
    torch.manual_seed(0)
    features = torchvision.models.vgg16().features
    path = folder / "vgg16-397923af.pth"
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, path)
    return path


def vocabulary_file(folder: Path) -> Path:
    """BERT's form, a token a line."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(_WORDS) + "\n")
    return path


def emnist(data: Path) -> None:
    """Two letters of each kind, one in the test split."""
    folder = data / "emnist"
    folder.mkdir(parents=True)
    for split, count in (("train", 52), ("test", 26)):
        images = _pixels(count, 28, 28)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 26 + 1)):
            name = f"emnist-letters-{split}-{kind}-ubyte.gz"
            (folder / name).write_bytes(_idx(array.astype(np.uint8)))


def digits(folder: Path) -> None:
    """Grey digits as NPZ, for MNIST's own files are known by their digest."""
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("test", 60)):
        np.savez(folder / f"{split}.npz", images=_pixels(count, 28, 28), labels=np.arange(count) % 10)


def imagenet(data: Path, *, side: int) -> None:
    """Two train batches and a validation file, as npz."""
    folder = data / f"imagenet{side}"
    folder.mkdir(parents=True)
    for name in ("train_data_batch_1", "train_data_batch_2", "val_data"):
        labels = _RNG.integers(1, 1001, 20)
        np.savez(folder / f"{name}.npz", data=_pixels(20, 3 * side * side), labels=labels)


def cifar10(data: Path) -> None:
    """The archive of Python pickles."""
    (data / "cifar10").mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    with tarfile.open(data / "cifar10" / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in names:
            count = 60 if name == "test_batch" else 10
            batch = {"data": _pixels(count, 3072), "labels": [i % 10 for i in range(count)]}
            content = pickle.dumps(batch, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def celeba(data: Path) -> None:
    """Aligned faces of 178 × 218 pixels with attributes and partitions."""
    folder = data / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, 91)]
    for name in names:
        Image.fromarray(_pixels(218, 178, 3)).save(folder / "img_align_celeba" / name)
    rows = [f"{name} {1 if number % 2 else -1}" for number, name in enumerate(names)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(names)), "Male", *rows]) + "\n")
    parts = [f"{name} {0 if number < 30 else 2}" for number, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")


def captioned(folder: Path) -> None:
    """Photographs in one folder a split, with metadata.jsonl."""
    for split, count in (("train", 24), ("test", 60)):
        own = folder / split
        own.mkdir(parents=True)
        lines = []
        for number in range(count):
            Image.fromarray(_pixels(40, 32, 3)).save(own / f"{number}.jpg")
            caption = "A face smiles" if number % 2 else "a serious face"
            lines.append(json.dumps({"file_name": f"{number}.jpg", "text": caption}))
        (own / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _pixels(*shape: int) -> np.ndarray:
    return _RNG.integers(0, 256, shape, dtype=np.uint8)


def _idx(array: np.ndarray) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + shape + array.tobytes())
