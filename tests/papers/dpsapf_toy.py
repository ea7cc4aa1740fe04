"""What the recipe of DP-SAPF needs at the size of a test: files of the real form, and overrides."""

import io
import tarfile
from pathlib import Path

import numpy as np
from images.sd_support import write_checkpoint

TOY = [
    "--data.init_args.size=16",
    "--data.init_args.judged_size=8",
    "--model.init_args.net.init_args.size=8",
    "--model.init_args.sampler.init_args.num_steps=2",
    "--model.init_args.max_sampling_rows=100",
    "--privacy.physical_batch_size=8",
    "--trainer.accelerator=cpu",
    "--run.test=true",
]
"""No more than what is too large for a test."""


def write_cifar10(folder: Path, *, train: int = 40, test: int = 20) -> Path:
    """FOLDER/cifar10/ with the published archive: of each class as many images, each of its own shade."""
    path = folder / "cifar10" / "cifar-10-binary.tar.gz"
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for name, count in (("data_batch_1.bin", train), ("test_batch.bin", test)):
            labels = np.arange(count) % 10
            pixels = (25 * labels[:, None] + rng.integers(0, 25, (count, 3072))).astype(np.uint8)
            content = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_dpsapf(folder: Path) -> list[str]:
    """CIFAR-10 and a checkpoint with random weights in a folder; the override that names the checkpoint."""
    write_cifar10(folder)
    checkpoint = write_checkpoint(folder / "tiny-sd")
    return [f"--model.init_args.net.init_args.path={checkpoint}"]
