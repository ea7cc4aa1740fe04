"""Simple shapes as the simulator: a circle, a polygon or a star, somewhere, of some size and colour."""

import math
from collections.abc import Sequence
from typing import Literal, final, get_args

from PIL import Image, ImageDraw

from lightning_dp.images.data.pixels import Mode
from lightning_dp.images.evolution.parameters import Number
from lightning_dp.images.evolution.renderer import Renderer

Shape = Literal["circle", "triangle", "square", "bar", "pentagon", "cross", "star"]
_FINER = 4
"""Drawn so much larger, then made small: smooth edges."""


@final
class RenderedShapes(Renderer):
    """One filled shape on black; place, size, angle, stretch and colour vary.

    Args:
        shapes: one or several names per class, separated by spaces, in the data's order: `circle`,
            `triangle`, `square`, `bar`, `pentagon`, `cross`, `star`.
        size: S ≥ 4 pixels.
        mode: grey or rgb, as the data's; in grey the colour is a shade.
        radii: smallest and largest radius, in sides of the image; above 0.
        shift: in [0, 0.5], how far its middle is from the image's at most, in sides.

    Raises:
        ValueError: a value out of range, or a name of no shape.
    """

    def __init__(
        self,
        shapes: Sequence[str],
        *,
        size: int = 28,
        mode: Mode = "grey",
        radii: tuple[float, float] = (0.15, 0.45),
        shift: float = 0.25,
    ) -> None:
        known = get_args(Shape)
        for names in shapes:
            unknown = [name for name in names.split() if name not in known]
            if unknown or not names.split():
                raise ValueError(
                    f"RenderedShapes.shapes has {unknown[0] if unknown else 'an empty entry'}; each class "
                    f"takes one or more of {', '.join(known)}."
                )
        if not shapes:
            raise ValueError("RenderedShapes.shapes is empty; give one entry per class: such as [circle].")
        if not 0 < radii[0] <= radii[1]:
            raise ValueError(
                f"RenderedShapes.radii is {tuple(radii)}; it must be two numbers above 0, the smaller first: "
                "(0.15, 0.45) is usual."
            )
        if not 0 <= shift <= 0.5:
            raise ValueError(f"RenderedShapes.shift is {shift}; it must lie in [0, 0.5] sides.")
        colours = ("shade",) if mode == "grey" else ("red", "green", "blue")
        super().__init__(
            [[known.index(name) for name in names.split()] for names in shapes],
            [
                Number(name="x", low=-shift, high=shift, reach=shift),
                Number(name="y", low=-shift, high=shift, reach=shift),
                Number(name="radius", low=radii[0], high=radii[1], reach=(radii[1] - radii[0]) / 2),
                Number(name="angle", low=-180, high=180, reach=60),
                Number(name="stretch", low=0.5, high=1.0, reach=0.25),
                *(Number(name=colour, low=64, high=255, reach=96) for colour in colours),
            ],
            size=size,
            mode=mode,
        )

    def draw(self, subject: int, **values: float) -> Image.Image:
        side = self.size * _FINER
        image = Image.new(self.pillow_mode, (side, side))
        turn = math.radians(values["angle"])
        points = []
        for x, y in _outline(get_args(Shape)[subject]):
            x, y = x * values["radius"], y * values["radius"] * values["stretch"]
            across = 0.5 + values["x"] + x * math.cos(turn) - y * math.sin(turn)
            down = 0.5 + values["y"] + x * math.sin(turn) + y * math.cos(turn)
            points.append((across * side, down * side))
        shades = [round(values[name]) for name in ("shade", "red", "green", "blue") if name in values]
        ImageDraw.Draw(image).polygon(points, fill=shades[0] if self.mode == "grey" else tuple(shades))
        return image.resize((self.size, self.size), Image.Resampling.BOX)

    def facts(self) -> dict[str, str | float | int]:
        return {"api": "RenderedShapes"}


def _outline(shape: Shape) -> list[tuple[float, float]]:
    """Corners on or inside the unit circle, one after another."""
    if shape == "bar":
        return [(-1.0, -0.25), (1.0, -0.25), (1.0, 0.25), (-1.0, 0.25)]
    if shape == "cross":
        arm, end = 0.3, 0.95
        quarter = [(arm, arm), (end, arm), (end, -arm), (arm, -arm)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(y, -x) for x, y in quarter]
        return corners
    count = {"circle": 48, "triangle": 3, "square": 4, "pentagon": 5, "star": 10}[shape]
    offset = math.pi / 4 if shape == "square" else -math.pi / 2
    corners = []
    for number in range(count):
        radius = 0.45 if shape == "star" and number % 2 else 1.0
        at = offset + 2 * math.pi * number / count
        corners.append((radius * math.cos(at), radius * math.sin(at)))
    return corners
