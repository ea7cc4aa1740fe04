"""What an audit leaves: a table for the console, `audit.json`, and two figures."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_dp.audits.figures import score_histograms, trade_off
from lightning_dp.audits.judged import Row
from lightning_dp.audits.white_box import Scores, Setting
from lightning_dp.privacy.accounting import event_to_dict
from lightning_dp.privacy.report import json_ready, replace_text

_HEAD = ("adversary", "estimator", "n", "ε ≥", "claimed ε ≤", "verdict")


def table(rows: Sequence[Row]) -> str:
    """Aligned columns, a row per estimator; n counts scores without and with a canary."""
    cells = [
        (
            row.adversary,
            row.estimator,
            f"{row.nulls}+{row.canaries}",
            _number(row.bound),
            _number(row.claimed),
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [_HEAD, *cells]) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [_HEAD, *cells]
    )


def sentence(rows: Sequence[Row], *, alpha: float) -> str:
    """The verdict of all rows."""
    above = [row for row in rows if row.exceeds]
    if not above:
        return (
            f"No adversary showed more than is claimed (α = {alpha:g} for all {len(rows)} bounds together); "
            "that is no proof: another attack may show more."
        )
    worst = {row.adversary: row.verdict.partition(": ")[2] for row in above}
    found = "; ".join(f"{adversary} ({meaning})" for adversary, meaning in worst.items())
    return (
        f"What ran gives away more than is claimed, seen by {found}: no ε of fits on this path "
        "holds until it is mended."
    )


def write(
    folder: Path, rows: Sequence[Row], *, scores: Sequence[Scores], alpha: float, facts: dict[str, Any]
) -> None:
    """`audit.json`, `scores.png` and `trade_off.png`; of made-up units alone.

    Args:
        folder: made where it is missing.
        rows: of `judge`.
        scores: that they are of.
        alpha: for all rows together.
        facts: what else the file says, JSON-ready.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        "verdict": sentence(rows, alpha=alpha),
        "passed": not any(row.exceeds for row in rows),
        "alpha": alpha,
        **facts,
        "mechanisms": {one.adversary: event_to_dict(one.event) for one in scores},
        "rows": [{**asdict(row), "exceeds": row.exceeds} for row in rows],
    }
    text = json.dumps(json_ready(content), indent=1, ensure_ascii=False, allow_nan=False)
    replace_text(folder / "audit.json", text + "\n")
    each = alpha / max(1, len(rows))
    score_histograms(scores).savefig(folder / "scores.png", dpi=110)
    trade_off(scores, alpha=each).savefig(folder / "trade_off.png", dpi=110)


def facts_of(setting: Setting) -> dict[str, Any]:
    """The setting of an audit, JSON-ready."""
    return {"setting": {**asdict(setting), "sampling_rate": setting.event.sampling_rate}}


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2f}"
