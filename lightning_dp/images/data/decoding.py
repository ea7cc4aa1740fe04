"""Bytes to pixels: formats that are pictures and no programs, measured before they are decoded."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lightning_dp.archives import MAX_ENCODED
from lightning_dp.told import told_error

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Of Pillow's. Its others are old, rare, or hand the file to another program, as EPS does to Ghostscript."""
MAX_PIXELS = 64_000_000


class UnreadableImage(ValueError):
    """An image that can't be decoded; its sentence names it and the fix."""


def decode(content: bytes, *, name: str, check: Callable[[Image.Image], None] | None = None) -> Image.Image:
    """An image of one of `FORMATS`.

    Args:
        content: the file, at most 256 MiB.
        name: of it, for messages.
        check: is handed the image before its pixels are decoded, to refuse its size or mode.

    Raises:
        UnreadableImage: it is none, is damaged, or has more than `MAX_PIXELS`.
    """
    if len(content) > MAX_ENCODED:
        raise _unreadable(name, f"it has {len(content)} bytes, more than {MAX_ENCODED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is smaller
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _unreadable(name, str(error)) from error
    except Exception as error:  # decoders of damaged files raise whatever they run into
        raise _unreadable(name, f"{told_error(error)}; formats are {', '.join(FORMATS)}") from error
    if image.width * image.height > MAX_PIXELS:
        raise _unreadable(name, f"it has {image.width} × {image.height} pixels, more than {MAX_PIXELS}")
    if check is not None:
        check(image)
    try:
        image.load()
    except Exception as error:
        raise _unreadable(name, told_error(error)) from error
    return image


def read_encoded(path: Path) -> bytes:
    """A file that may be an image; one that is larger than any is cut, and refused when it is decoded."""
    with path.open("rb") as file:
        return file.read(MAX_ENCODED + 1)


def _unreadable(name: str, reason: str) -> UnreadableImage:
    return UnreadableImage(
        f"{name} can't be read as an image ({reason}): replace or remove it, or set data.unreadable to skip."
    )
