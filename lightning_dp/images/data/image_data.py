"""The data module of the image half: a source, its checks, and the privacy unit."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_dp.images.batch import ImageBatch
from lightning_dp.images.data.dataset import ImageDataset, to_floats
from lightning_dp.images.data.made_up import MadeUpImages
from lightning_dp.images.data.pixels import Mode, OtherModes, OtherSizes, PixelRules, Pixels, Unreadable
from lightning_dp.images.data.source import ImageSource, Split
from lightning_dp.nets.tokenizers import Tokenizer
from lightning_dp.privacy.units import PrivacyUnit
from lightning_dp.strategies.every_row_once import evaluation_sampler

Unit = Literal["image", "user"]
EmptyClasses = Literal["error", "allow"]


class ImageData(LightningDataModule):
    """Images of one source at one size.

    Attributes:
        dataset_id: the name under which ledgers and results know these images.
        size: S.
        image_channels: 1 or 3.
        class_names: of the labels.
        num_classes: their number.
        has_captions: whether each image has a text of its own.
        public: whether no image is private.
        judged_size: side in pixels at which samples and test images are compared.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        size: int = 28,
        judged_size: int | None = None,
        mode: Mode = "grey",
        unit: Unit = "image",
        images_per_user: int = 4,
        other_sizes: OtherSizes = "error",
        other_modes: OtherModes = "error",
        unreadable: Unreadable = "error",
        empty_classes: EmptyClasses = "error",
        tokenizer: Tokenizer | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        memory_gb: float = 4.0,
        public: bool = False,
    ) -> None:
        """Declare the data; no image is read yet.

        Args:
            source: where the images come from.
            size: side in pixels, 8 to 1024.
            judged_size: side at which samples are judged, at most `size`; None for `size`. Images that were
                made larger for a public model are small again for that, and test images as they came.
            mode: `grey` or `rgb`.
            unit: what one unit of privacy is: an `image`, or a `user` with all of their images.
            images_per_user: λ ≥ 1 images of a user in one step, for `unit: user`.
            other_sizes: what to do with images of another size: `error`, `crop` or `pad`.
            other_modes: what to do with images of another mode: `error` or `convert`.
            unreadable: what to do with images that can't be decoded: `error`, or `skip` and count them.
            empty_classes: whether a class may be without images in train: `error` or `allow`.
            tokenizer: of the captions, for a net that learns to read them by an equal one; None hands texts
                to a net that reads already.
            batch_size: ≥ 1, units of a batch where training is not private, images of a test batch.
            num_workers: ≥ 0, loader processes; 0 is the fastest for images that fit memory.
            memory_gb: ≥ 0, up to which decoded images are kept rather than decoded again.
            public: your word that anyone may see these images, so that a private fit may start from weights
                that were trained on them; sources that are public say so themselves.

        Raises:
            ValueError: a value that can't be.
        """
        super().__init__()
        for field, value, least in (
            ("images_per_user", images_per_user, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"ImageData.{field} is {value}; it must be at least {least}.")
        for field, choice, kinds in (("unit", unit, Unit), ("empty_classes", empty_classes, EmptyClasses)):
            if choice not in get_args(kinds):
                raise ValueError(
                    f"ImageData.{field} is {choice!r}; it must be one of {', '.join(get_args(kinds))}."
                )
        self.rules = PixelRules(
            size=size,
            mode=mode,
            other_sizes=other_sizes,
            other_modes=other_modes,
            unreadable=unreadable,
            memory_gb=memory_gb,
        )
        self.judged_size = size if judged_size is None else judged_size
        if self.judged_size > size:
            raise ValueError(
                f"ImageData.judged_size is {judged_size}, above data.size={size}: samples are only made "
                "smaller; leave it out to judge them as they are."
            )
        self._judged_rules = replace(self.rules, size=self.judged_size)
        self.source = source
        self.unit = unit
        self.images_per_user = images_per_user
        self.empty_classes = empty_classes
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.dataset_id = source.dataset_id
        self.class_names = source.class_names
        self.num_classes = len(source.class_names)
        self.size = size
        self.image_channels = self.rules.num_channels
        self.has_captions = source.has_captions
        if tokenizer is not None and not source.has_captions:
            raise ValueError(
                f"ImageData.tokenizer is given, but {source.dataset_id} has no captions: set the source's "
                "captions on, or tokenizer to null."
            )
        self.tokenizer = tokenizer
        self.public = public or source.public
        self._train: ImageDataset | None = None
        self._test: ImageDataset | None = None

    def prepare_data(self) -> None:
        """Make sure that the files are there."""
        self.source.open("train")

    def setup(self, stage: str | None = None) -> None:
        """Read and check the splits that the stage needs; cheap to call again."""
        if stage in (None, "fit") and self._train is None:
            self._train = self._open_train()
        if stage in (None, "test", "validate", "predict") and self._test is None:
            self._test = self._open_test()

    @property
    def train_dataset(self) -> ImageDataset:
        """The train split; every item is one privacy unit."""
        self.setup("fit")
        assert self._train is not None
        return self._train

    @property
    def test_dataset(self) -> ImageDataset:
        """The test split, an image an item."""
        self.setup("test")
        assert self._test is not None
        return self._test

    def judged_pixels(self, split: Split) -> Pixels:
        """A split at the size at which samples are judged, read from its files and not from `size`."""
        if self.judged_size == self.size:
            return (self.train_dataset if split == "train" else self.test_dataset).pixels
        return self._checked(split, rules=self._judged_rules)

    def privacy_unit(self) -> PrivacyUnit:
        """The image, or the user with all of their images."""
        dataset = self.train_dataset
        what = "label and caption" if self.has_captions else "label"
        if self.unit == "image":
            return PrivacyUnit(
                name="record",
                num_units=len(dataset),
                description=f"one image of {self.dataset_id} with its {what}",
            )
        return PrivacyUnit(
            name="user",
            num_units=len(dataset),
            rows_per_unit=self.images_per_user,
            description=(
                f"all images of one user of {self.dataset_id}; {self.images_per_user} of them fill a batch's "
                "rows and are clipped as one"
            ),
        )

    def synthetic_units(self, num_units: int) -> ImageBatch:
        """A collated batch of made-up units, from public facts only."""
        rows = num_units * (self.images_per_user if self.unit == "user" else 1)
        shape = (rows, self.image_channels, self.size, self.size)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        batch = ImageBatch(images=to_floats(pixels), labels=torch.arange(rows) % max(1, self.num_classes))
        if self.has_captions:
            captions = [f"made up, number {row}" for row in range(rows)]
            if self.tokenizer is None:
                batch["captions"] = captions
            else:
                batch["tokens"] = self.tokenizer(captions)
        return batch

    def synthetic_items(self, num_items: int) -> list[ImageBatch]:
        """The same as items of the train dataset, each the rows of one unit."""
        columns: Any = self.synthetic_units(num_items)
        rows = len(columns["images"]) // num_items
        return [
            cast(ImageBatch, {name: own[unit * rows : (unit + 1) * rows] for name, own in columns.items()})
            for unit in range(num_items)
        ]

    def rehearsal_data(self) -> "ImageData":
        """The same data module over four made-up images a split; a split that the source lacks is lacking."""
        made_up = copy.copy(self)
        made_up.source = MadeUpImages(
            self.source, size=self.size, channels=self.image_channels, has_test=self._has_test
        )
        made_up._train = made_up._test = None
        made_up.empty_classes, made_up.num_workers = "allow", 0
        return made_up

    def check_test(self) -> None:
        """Read the test split, which nothing charges for: what is wrong with it shows before a fit."""
        self.setup("test")

    @property
    def _has_test(self) -> bool:
        return self._test is not None or self.source.open("test") is not None

    def content_pieces(self) -> Iterator[bytes]:
        """What the ledger knows the train images by; nothing of sources that are public."""
        return iter(()) if self.source.public else self.train_dataset.pixels.content_pieces()

    def facts(self) -> dict[str, str | float | int]:
        """Plain names for tables of results."""
        facts: dict[str, str | float | int] = {"image_size": self.size, "num_classes": self.num_classes}
        if self._train is not None and self._train.pixels.skipped:
            facts["nonprivate/skipped_images"] = self._train.pixels.skipped
        return facts

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Shuffled units; a private fit replaces the sampling and keeps the rest."""
        return self._loader(self.train_dataset, shuffle=True)

    def test_dataloader(self) -> DataLoader[ImageBatch]:
        """Test images in order."""
        return self._loader(self.test_dataset, sampler=evaluation_sampler(self.test_dataset))

    def _open_train(self) -> ImageDataset:
        pixels = self._checked("train")
        if self.unit == "user" and pixels.users is None:
            raise ValueError(
                f"ImageData.unit is user, but {type(self.source).__name__} does not say whose the images "
                "are: name its user column or folder, or set unit to image."
            )
        counts = np.bincount(pixels.labels[pixels.labels >= 0], minlength=self.num_classes)
        if self.empty_classes == "error" and (counts == 0).any():
            name = self.class_names[int((counts == 0).argmax())]
            raise ValueError(
                f"the class {name!r} has no image in train: take it out of the classes (or remove its empty "
                "folder), or set data.empty_classes to allow."
            )
        by_user = self.unit == "user"
        return ImageDataset(
            pixels,
            rows_per_unit=self.images_per_user if by_user else 1,
            by_user=by_user,
            tokenizer=self.tokenizer,
        )

    def _open_test(self) -> ImageDataset:
        return ImageDataset(self._checked("test"), tokenizer=self.tokenizer)

    def _checked(self, split: Split, *, rules: PixelRules | None = None) -> Pixels:
        table = self.source.open(split)
        if table is None:
            raise ValueError(
                f"{self.dataset_id} has no {split} split: put its images beside those of train, or skip what "
                "needs it (--run.test false)."
            )
        bad = np.flatnonzero((table.labels < -1) | (table.labels >= self.num_classes))
        if len(bad):
            raise ValueError(
                f"{table.name(int(bad[0]))} has the label {table.labels[bad[0]]}, but there are "
                f"{self.num_classes} classes, counted from 0 ({len(bad)} such label(s)): correct it, or the "
                "list of classes."
            )
        return Pixels(table, rules=rules or self.rules)

    def _loader(self, dataset: ImageDataset, **order: Any) -> DataLoader[ImageBatch]:
        return DataLoader(
            dataset,
            **order,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=ImageDataset.collate,
        )
