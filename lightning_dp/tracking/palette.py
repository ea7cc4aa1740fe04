"""Colours of methods, the same in every figure and on the dashboard.

Each hue has a shade for paper and light screens and one for dark screens, both with a contrast of at least
3 : 1 against their ground. The first four stay well apart for readers with a colour deficiency, all eight
somewhat; markers differ as well, so that no figure depends on colour alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

INK, MUTED, GRID = "#22262b", "#6b7280", "#e5e7eb"
FORECAST, BASELINE = "#0b62a8", "#c8570c"
DARK_GROUND = "#14181f"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one method is drawn.

    Attributes:
        light, dark: hexadecimal colours for light and dark grounds.
        marker: matplotlib's name of the marker.
        symbol: Plotly's name of the same marker.
    """

    light: str
    dark: str
    marker: str
    symbol: str


_STYLES = (
    Style(light="#0b62a8", dark="#62b0f0", marker="o", symbol="circle"),
    Style(light="#c8570c", dark="#ff9a52", marker="s", symbol="square"),
    Style(light="#00594a", dark="#2f9c86", marker="^", symbol="triangle-up"),
    Style(light="#d765a5", dark="#f7a8d4", marker="D", symbol="diamond"),
    Style(light="#7a2012", dark="#d1495b", marker="v", symbol="triangle-down"),
    Style(light="#3a1d6e", dark="#7f6fe8", marker="P", symbol="cross"),
    Style(light="#3a8fd9", dark="#f2ec6a", marker="X", symbol="x"),
    Style(light="#66727f", dark="#a9eef5", marker="*", symbol="star"),
)


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method, by its place among the sorted names: same names, same colours."""
    return {method: _STYLES[number % len(_STYLES)] for number, method in enumerate(sorted(set(methods)))}


def style_of_curve(number: int) -> Style:
    """The style of the curve with this number, ≥ 0, where curves are no methods."""
    return _STYLES[number % len(_STYLES)]
