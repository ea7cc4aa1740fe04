"""Every image of a split as equal arrays: decoded, checked, brought to one size and mode.

All images are decoded once, so that a bad one is named before training starts and not in the middle of it.
What fits the given memory is kept; beyond, images are decoded again at each access.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageOps

from lightning_dp.images.data.decoding import UnreadableImage
from lightning_dp.images.data.table import ImageTable

Mode = Literal["grey", "rgb"]
OtherSizes = Literal["error", "crop", "pad"]
OtherModes = Literal["error", "convert"]
Unreadable = Literal["error", "skip"]

_PIL_MODES: dict[str, str] = {"grey": "L", "rgb": "RGB"}


@dataclass(frozen=True, kw_only=True)
class PixelRules:
    """What images have to be like, and what happens to those that aren't.

    Attributes:
        size: side in pixels, 8 to 1024.
        mode: `grey` (one channel) or `rgb`.
        other_sizes: `error`, `crop` (the middle square, resized) or `pad` (black bars, resized).
        other_modes: `error` or `convert`.
        unreadable: `error`, or `skip` what can't be decoded, which is counted and reported.
        memory_gb: ≥ 0, up to which decoded images are kept.
    """

    size: int
    mode: Mode = "grey"
    other_sizes: OtherSizes = "error"
    other_modes: OtherModes = "error"
    unreadable: Unreadable = "error"
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 1024:
            raise ValueError(f"size is {self.size}; it must lie between 8 and 1024 pixels.")
        for field, value, kinds in (
            ("mode", self.mode, Mode),
            ("other_sizes", self.other_sizes, OtherSizes),
            ("other_modes", self.other_modes, OtherModes),
            ("unreadable", self.unreadable, Unreadable),
        ):
            if value not in get_args(kinds):
                raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(get_args(kinds))}.")
        if self.memory_gb < 0:
            raise ValueError(f"memory_gb is {self.memory_gb}; it can't be negative.")

    @property
    def num_channels(self) -> int:
        """1 for grey, 3 for rgb."""
        return 1 if self.mode == "grey" else 3

    def check(self, image: Image.Image, *, name: str) -> None:
        """Refuse an image by what its header says, before its pixels are decoded.

        Raises:
            ValueError: another size or mode, where that is an error; it names the image and the fix.
        """
        wanted = _PIL_MODES[self.mode]
        if image.mode != wanted and self.other_modes == "error":
            raise ValueError(
                f"{name} has the mode {image.mode}, and data.mode={self.mode} asks for {wanted}: convert "
                "the file, set data.mode, or set data.other_modes to convert."
            )
        if image.size != (self.size, self.size) and self.other_sizes == "error":
            raise ValueError(
                f"{name} has {image.width} × {image.height} pixels, and data.size={self.size} asks for "
                f"{self.size} × {self.size}: set data.size, or data.other_sizes to crop or pad."
            )

    def apply(self, image: Image.Image) -> np.ndarray:
        """(C, S, S) uint8 of an image that `check` lets pass."""
        wanted = _PIL_MODES[self.mode]
        if image.mode != wanted:
            image = _convert(image, wanted)
        if image.size != (self.size, self.size):
            fit = ImageOps.fit if self.other_sizes == "crop" else ImageOps.pad
            image = fit(image, (self.size, self.size), method=Image.Resampling.LANCZOS)
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


class Pixels:
    """The readable images of a table under one set of rules.

    Attributes:
        labels: (N,) int64.
        users: (N,) names, or None.
        captions: N texts, or None.
        skipped: how many could not be decoded.
    """

    def __init__(self, table: ImageTable, *, rules: PixelRules) -> None:
        """Decode and check every image.

        Raises:
            ValueError: an image breaks a rule, or none is left.
        """
        self._table, self._rules = table, rules
        self._pieces: list[bytes] = []
        shape = (rules.num_channels, rules.size, rules.size)
        self._array: np.ndarray | None = None
        array = table.array()
        if array is not None and array.shape[1:3] == shape[1:] and _depth(array) == shape[0]:
            # Nothing to decode, resize or convert.
            self._array = array.reshape(-1, *shape) if shape[0] == 1 else array.transpose(0, 3, 1, 2)
            self._keep(range(len(table)))
            return
        kept = len(table) * int(np.prod(shape)) <= rules.memory_gb * 2**30
        if kept:
            self._array = np.empty((len(table), *shape), dtype=np.uint8)
        readable: list[int] = []
        for index in range(len(table)):
            try:
                image = self._decoded(index)
                checked = rules.apply(image)
            except UnreadableImage:
                if rules.unreadable == "error":
                    raise
                continue
            self._pieces.append(piece_of(np.asarray(image)))
            if self._array is not None:
                self._array[len(readable)] = checked
            readable.append(index)
        self._keep(readable)
        if self.skipped:
            rank_zero_warn(f"{self.skipped} of {len(table)} images can't be read and were skipped")
        if not readable:
            raise ValueError("no image of the split is readable: check the files that data.source names.")
        if self._array is not None:
            self._array = self._array[: len(readable)]

    def _keep(self, rows: Sequence[int]) -> None:
        self._rows = np.array(rows, dtype=np.int64)
        self.skipped = len(self._table) - len(rows)
        self.labels = self._table.labels[self._rows]
        self.users = None if self._table.users is None else self._table.users[self._rows]
        captions = self._table.captions
        self.captions = None if captions is None else [captions[row] for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Where image `index` is."""
        return self._table.name(int(self._rows[index]))

    def content_pieces(self) -> Iterator[bytes]:
        """A hash of each image as it came, before sizes and modes were made alike."""
        array = None if self._pieces else self._table.array()
        yield from self._pieces if array is None else map(piece_of, array)

    def get(self, indices: np.ndarray) -> np.ndarray:
        """(B, C, S, S) uint8."""
        if self._array is not None:
            return self._array[indices]
        rows = self._rows[indices]
        return np.stack([self._read(int(i)) for i in rows])

    def _read(self, row: int) -> np.ndarray:
        """(C, S, S) uint8 of a row of the table."""
        return self._rules.apply(self._decoded(row))

    def _decoded(self, row: int) -> Image.Image:
        """A row of the table as it came, whose header was checked before it was decoded."""
        return self._table.read(row, check=partial(self._rules.check, name=self._table.name(row)))


def piece_of(image: np.ndarray) -> bytes:
    """A hash of an image, (H, W) or (H, W, channels) uint8, whatever file it came from."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.digest()


def shrunk(images: np.ndarray, *, size: int) -> np.ndarray:
    """Square images (N, C, S, S) uint8, made (N, C, size, size) by Lanczos' filter; unchanged at S."""
    if images.shape[-1] == size:
        return images
    small = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for number, image in enumerate(images):
        for channel, plane in enumerate(image):
            resized = Image.fromarray(plane).resize((size, size), Image.Resampling.LANCZOS)
            small[number, channel] = np.asarray(resized)
    return small


def _depth(array: np.ndarray) -> int:
    """Channels of (N, H, W) or (N, H, W, 3)."""
    return 1 if array.ndim == 3 else int(array.shape[3])


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # PIL would cut these off at 255 rather than scale them.
        values = np.asarray(image, dtype=np.float64) / (65535.0 if image.mode.startswith("I") else 1.0)
        image = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert(mode)
