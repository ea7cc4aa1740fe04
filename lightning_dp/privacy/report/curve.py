"""ε(δ) drawn as SVG: δ on a logarithmic axis, the headline marked."""

import math
from collections.abc import Sequence
from html import escape

from lightning_dp.privacy.report.document import CurvePoint
from lightning_dp.privacy.report.sections import bound

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 22, 44


def to_svg(curve: Sequence[CurvePoint], *, delta: float | None) -> str:
    """The curve, in the page's own colours; infinite ε are left out.

    Args:
        curve: δ ascending.
        delta: of the headline.
    """
    points = [point for point in curve if math.isfinite(point.epsilon)]
    if not points:
        return "<p>ε is infinite at every δ.</p>"
    low, high = math.log10(points[0].delta), math.log10(points[-1].delta)
    step = _step(max(point.epsilon for point in points))
    top = step * max(1, math.ceil(max(point.epsilon for point in points) / step - 1e-9))

    def place(point: CurvePoint) -> tuple[float, float]:
        share = (math.log10(point.delta) - low) / (high - low) if high > low else 0.5
        x = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        return x, _TOP + (1 - point.epsilon / top) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for number in range(round(top / step) + 1):
        y = _TOP + (1 - number * step / top) * (_HEIGHT - _TOP - _BOTTOM)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, 2):
        x, _ = place(CurvePoint(delta=10.0**power, epsilon=0.0))
        label = f'10<tspan class="power" dy="-5">{escape(str(power).replace("-", "−"))}</tspan>'
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{label}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
    parts.append(f'<polyline class="curve" points="{line}"/>')
    parts += [f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in map(place, points)]
    for point in points:
        if point.delta == delta:
            x, y = place(point)
            # ε falls with δ: above it on the right and below it on the left there is room.
            left = x > _WIDTH * 0.7
            across, down, anchor = (-10, 20, "end") if left else (10, -9, "start")
            parts.append(f'<circle class="headline" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
            parts.append(
                f'<text class="headline" x="{x + across:.1f}" y="{y + down:.1f}" text-anchor="{anchor}">'
                f"ε = {bound(point.epsilon)} at δ = {point.delta:.4g}</text>"
            )
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">δ</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="12" text-anchor="end">ε</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="ε against δ">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _step(largest: float) -> float:
    """A round distance of three to six grid lines."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(unit * power for unit in (0.2, 0.5, 1.0, 2.0) if largest / (unit * power) <= 6)
