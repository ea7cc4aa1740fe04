"""A first project for a folder of images, or for numpy files of them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_dp.images.data.own_files import SUFFIXES
from lightning_dp.starter.project import Budget, Starter

_LOOKED_AT = 200
_SIDES = (64, 32)
_LARGEST_AS_IT_IS = 64


def start_images(path: Path) -> tuple[Starter, Budget | None]:
    """A project for `PATH/train/CLASS/NAME.png`, `PATH/CLASS/NAME.png`, or `PATH/train.npz`.

    Raises:
        ValueError: the folder holds nothing like it.
    """
    root = path.expanduser().resolve()
    guesses: list[str] = []
    questions = [
        "under which name the ledger keeps the account of these images (source.dataset_id)",
        "whether one person is in several images: then set unit: user, with a folder below the class for "
        "each",
        "which ε whoever is in the images may be promised: 10 is usual for images, 8 is only a start",
        "whether there are public images of a like kind to train on first: it is worth most, see "
        "docs/own_images.md",
    ]
    if (root / "train.npz").is_file():
        source, classes, count, sizes, grey = _npz(root, guesses, questions)
    else:
        source, classes, count, sizes, grey = _folder(root, guesses)
    (width, height), common = sizes.most_common(1)[0]
    one_size = len(sizes) == 1 and width == height <= _LARGEST_AS_IT_IS and width % 4 == 0
    size = width if one_size else next((side for side in _SIDES if side <= min(width, height)), 32)
    guesses.append(
        f"{common} of the {sum(sizes.values())} images looked at are {width} × {height}; the model makes "
        f"{size} × {size}"
    )
    guesses.append("all images looked at are grey" if grey else "images are in colour")
    has_test = (root / "test").is_dir() or (root / "test.npz").is_file()
    if not has_test:
        questions.append(
            "which images test: there is no test split, so nothing can be measured; put some into test/"
        )
    budget = Budget.usual("record", count) if count >= 2 else None
    patch = next(side for side in (7, 8, 4) if size % side == 0)
    lines = [
        f"# A first configuration for {root.name}, written by 'lightning-dp init' from a look at the images.",
        "# 'guess from the data' marks what was read off them: no ε covers what these lines tell, so "
        "keep them",
        "# where the data is, or replace them by what is publicly known. QUESTION marks what only you know.",
        "seed_everything: 0",
        "data:",
        "  class_path: lightning_dp.ImageData",
        "  init_args:",
        *(f"    {line}" for line in source),
        f"    size: {size}   # guess from the data",
        f"    mode: {'grey' if grey else 'rgb'}   # guess from the data",
        f"    other_sizes: {'error' if one_size else 'crop'}   # or pad: what to do with images of "
        "another size",
        "    other_modes: convert",
        "    unit: image   # QUESTION: or user, with a folder below the class for each person",
        "    batch_size: 256",
        "model:",
        "  class_path: lightning_dp.LatentDiffusion",
        "  init_args:",
        "    net:",
        "      class_path: lightning_dp.ImageDiT",
        "      init_args:",
        "        conditioning: lightning_dp.AdaLNZero",
        f"        in_channels: {1 if grey else 3}",
        f"        size: {size}",
        f"        num_classes: {len(classes)}",
        f"        patch_size: {patch}",
        "        hidden_size: 96",
        "        depth: 4",
        "        num_heads: 4",
        "    base_denoiser: lightning_dp.images.ClassGaussians   # half of ε buys the classes' means and "
        "covariances",
        "    sampler: {class_path: lightning_dp.Sampler, init_args: {num_steps: 12}}",
        "    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3, weight_decay: 0.0}}",
        *(
            budget.section.rstrip().split("\n")
            if budget
            else ["privacy: null   # QUESTION: too few images to plan"]
        ),
        "trainer:",
        "  accelerator: auto",
        "  devices: 1",
        f"  max_steps: {budget.steps if budget else 100}",
        "  limit_val_batches: 0   # validation would read images that no ε covers",
        "  log_every_n_steps: 5",
        "  enable_model_summary: false",
        "  callbacks:",
        "  - class_path: lightning_dp.EMA",
        "    init_args: {decay: 0.95}",
        "run:",
        "  wandb: disabled   # 'offline' or 'online' to track the run in W&B",
        *([] if has_test else ["  test: false   # there is no test split"]),
        "",
    ]
    return Starter(config="\n".join(lines), guesses=guesses, questions=questions), budget


def _folder(
    root: Path, guesses: list[str]
) -> tuple[list[str], list[str], int, Counter[tuple[int, int]], bool]:
    train = root / "train" if (root / "train").is_dir() else root
    files = sorted(one for one in train.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    if not files:
        raise ValueError(
            f"{root} holds no .csv or .parquet table, no train.npz and no image ({', '.join(SUFFIXES)}): "
            "sort "
            "images into train/CLASS/ and test/CLASS/, or name the folder that holds them."
        )
    classes = sorted(one.name for one in train.iterdir() if one.is_dir() and not one.name.startswith("."))
    sizes: Counter[tuple[int, int]] = Counter()
    modes = set()
    for one in files[:: max(1, len(files) // _LOOKED_AT)]:
        with Image.open(one) as image:
            sizes[image.size] += 1
            modes.add(image.mode)
    where = "its folders" if classes else "no folders"
    guesses.append(f"{len(files)} images to train on, in {len(classes)} classes by {where}")
    source = [
        "source:",
        "  class_path: lightning_dp.images.ImageFolder",
        "  init_args:",
        f"    path: {json.dumps(str(root), ensure_ascii=False)}",
        f"    dataset_id: {json.dumps(root.name, ensure_ascii=False)}   # QUESTION: the ledger's name; "
        "keep it",
        *([] if classes else ["    labelled: false"]),
    ]
    return source, classes, len(files), sizes, modes <= {"L", "1", "I;16", "I"}


def _npz(
    root: Path, guesses: list[str], questions: list[str]
) -> tuple[list[str], list[str], int, Counter[tuple[int, int]], bool]:
    from lightning_dp.archives import load_npz

    content = load_npz(root / "train.npz", "images", "labels", fix="save images= and labels= by numpy.savez.")
    if "images" not in content:
        raise ValueError(f"{root / 'train.npz'} has no array 'images': save them as images=.")
    images = content["images"]
    labels = np.unique(content["labels"]) if "labels" in content else np.empty(0, dtype=int)
    classes = [str(number) for number in range(int(labels.max()) + 1)] if len(labels) else []
    guesses.append(f"{len(images)} images to train on, with labels up to {len(classes) - 1}")
    questions.append(
        "what the labels are called (source.class_names), a public fact: numbers are written for now"
    )
    source = [
        "source:",
        "  class_path: lightning_dp.images.NPZ",
        "  init_args:",
        f"    path: {json.dumps(str(root), ensure_ascii=False)}",
        f"    dataset_id: {json.dumps(root.name, ensure_ascii=False)}   # QUESTION: the ledger's name; "
        "keep it",
        f"    class_names: {json.dumps(classes)}   # QUESTION: what they are called",
    ]
    sizes = Counter({(int(images.shape[2]), int(images.shape[1])): len(images)})
    return source, classes, len(images), sizes, images.ndim == 3
