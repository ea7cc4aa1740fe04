"""Characters in many fonts as the simulator (the text renderer of Sim-PE, arXiv 2502.05505, §4)."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import final

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from lightning_dp.images.data.pixels import Mode
from lightning_dp.images.evolution.parameters import Choice, Number
from lightning_dp.images.evolution.renderer import Renderer

_KNOWN = (
    "DejaVu*.ttf",
    "STIXGeneral*.ttf",
    "cmb10.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmti10.ttf",
    "cmtt10.ttf",
)
"""Not all: cmsy10 has signs where others have digits."""


@final
class RenderedText(Renderer):
    """White characters on black, in the middle; font, size, angle and stroke vary.

    As in the paper's run on MNIST: sizes of 10 to 29 pixels of 28, ±30°, strokes of 0 to 2 pixels, and at
    degree 1 a new font, ±6 pixels, ±11° and ±1 pixel. It draws fonts from Google's collection; here they are
    whatever is given.

    Args:
        characters: one text per class, in the data's order; each of its characters stands for the class,
            such as "0" or "oO".
        size: S ≥ 4 pixels.
        mode: grey or rgb, as the data's.
        fonts: files of fonts (.ttf, .otf), or folders of them; () for the DejaVu, STIX and Computer Modern
            fonts that come with matplotlib, as far as they have all characters.
        sizes: smallest and largest size of the font, in sides of the image; above 0.
        angle: in [0, 180] degrees, how far a character is turned at most.
        stroke: ≥ 0 pixels, how much bolder a character is made at most.

    Raises:
        ValueError: a value out of range, a font that can't be read or lacks a character.
    """

    def __init__(
        self,
        characters: Sequence[str],
        *,
        size: int = 28,
        mode: Mode = "grey",
        fonts: Sequence[str] = (),
        sizes: tuple[float, float] = (0.36, 1.04),
        angle: float = 30.0,
        stroke: int = 2,
    ) -> None:
        if not characters or not all(characters):
            raise ValueError(
                f"RenderedText.characters is {list(characters)}; one text per class, none of it empty: "
                'such as ["0", "1"].'
            )
        if not 0 < sizes[0] <= sizes[1]:
            raise ValueError(
                f"RenderedText.sizes is {tuple(sizes)}; it must be two numbers above 0, the smaller first: "
                "(0.36, 1.04) is the paper's."
            )
        if not 0 <= angle <= 180:
            raise ValueError(f"RenderedText.angle is {angle}; it must lie in [0, 180] degrees.")
        if stroke < 0:
            raise ValueError(f"RenderedText.stroke is {stroke}; it must be at least 0 pixels.")
        self._characters = "".join(characters)
        self._fonts = _given(fonts, self._characters) if fonts else _known(self._characters)
        ends = [0]
        for text in characters:
            ends.append(ends[-1] + len(text))
        low, high = (share * size for share in sizes)
        super().__init__(
            [range(start, end) for start, end in pairwise(ends)],
            [
                Choice(name="font", count=len(self._fonts)),
                Number(name="points", low=low, high=high, reach=6 / 28 * size),
                Number(name="angle", low=-angle, high=angle, reach=11 / 30 * angle),
                Number(name="stroke", low=0, high=stroke, reach=stroke / 2),
            ],
            size=size,
            mode=mode,
        )

    def draw(self, subject: int, **values: float) -> Image.Image:
        image = Image.new("L", (self.size, self.size))
        font = _font(self._fonts[int(values["font"])], max(1, round(values["points"])))
        ImageDraw.Draw(image).text(
            (self.size / 2, self.size / 2),
            self._characters[subject],
            font=font,
            fill=255,
            anchor="mm",
            stroke_width=round(values["stroke"]),
        )
        turned = image.rotate(values["angle"], resample=Image.Resampling.BICUBIC)
        return turned.convert(self.pillow_mode)

    def facts(self) -> dict[str, str | float | int]:
        return {"api": "RenderedText", "fonts": len(self._fonts)}


@lru_cache(maxsize=4096)
def _font(path: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, points)


def _known(characters: str) -> tuple[str, ...]:
    """The fonts beside matplotlib that have all characters."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = sorted({str(path) for pattern in _KNOWN for path in folder.glob(pattern)})
    found = tuple(path for path in paths if not _lacking(path, characters))
    if not found:
        raise ValueError(
            f"RenderedText.characters is {characters!r}, and no font beside matplotlib has them all: "
            "give files or folders of fonts that do by fonts."
        )
    return found


def _given(fonts: Sequence[str], characters: str) -> tuple[str, ...]:
    """The files of the paths, each of them with all characters."""
    files: list[str] = []
    for name in fonts:
        path = Path(name).expanduser()
        own = sorted(path.rglob("*.[to]tf")) if path.is_dir() else [path]
        if not own or not own[0].is_file():
            raise ValueError(
                f"RenderedText.fonts has {name}, where there is no font: give .ttf or .otf files, or a "
                "folder that holds some."
            )
        files += map(str, own)
    for file in files:
        lacking = _lacking(file, characters)
        if lacking:
            raise ValueError(
                f"RenderedText.fonts has {file}, which has no {lacking!r}: leave the font out, or give "
                "characters that it has."
            )
    return tuple(files)


def _lacking(path: str, characters: str) -> str | None:
    """The first character that a font has no glyph for."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} can't be read as a font ({error}): take it out of RenderedText.fonts."
        ) from None
    return next((one for one in characters if not font.get_char_index(ord(one))), None)
