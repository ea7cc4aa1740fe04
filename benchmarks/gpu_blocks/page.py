"""docs/results/gpu.md and gpu.json from the lines of one or several runs on a card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_blocks import ORDER

_RESULTS = Path(__file__).parents[2] / "docs" / "results"
_HEAD = """# On a GPU

`python benchmarks/gpu.py --out gpu.jsonl` on a machine with one card, nine minutes at most, then
`python benchmarks/gpu.py --merge gpu.jsonl`. What to carry there: `python benchmarks/gpu.py --list-needs`.
"""
_NOT_MEASURED = """
**Not measured on a GPU.** No figure of this project was, so far. That every block runs is tested on a CPU, at
toy size; that no path mixes devices, by a device that is not there (`tests/devices`).
"""
_ABOUT = {
    "machine": "The card",
    "exactness": "Exactness of clipped sums",
    "noise": "Noise",
    "fits": "Whole runs",
    "syncs": "Waits between host and device, a step",
    "engines": "Engines: a private step over the non-private one",
    "ways": "Ways to a layer's norms, by shape and size of a piece",
    "memory": "Memory with activation checkpointing",
    "diffusion_unet": "A UNet of Stable Diffusion's size",
    "release": "Release of a step by several ranks",
    "loading": "Rows on their way to the device",
    "timedit": "A diffusion transformer for series, vanilla and DP-aware",
}


def merge(paths: Sequence[Path], *, results: Path = _RESULTS) -> None:
    """Write both files; without lines that were measured on a card, the page says so.

    Raises:
        ValueError: a file holds lines of a `--fake` run, whose figures mean nothing.
    """
    runs = [_read(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if any(line.get("fake") for line in run):
            raise ValueError(f"{path} was made by --fake, on a CPU at toy size: merge lines of a card only.")
    lines = [line for run in runs for line in run]
    results.mkdir(parents=True, exist_ok=True)
    content = {"measured": bool(lines), "command": "python benchmarks/gpu.py", "rows": lines}
    (results / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    body = "\n".join(_section(name, lines) for name in ORDER) if lines else _NOT_MEASURED
    (results / "gpu.md").write_text(_HEAD + body)


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a run; the last one may have been cut off with the machine."""
    found = []
    for text in path.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def _section(name: str, lines: list[dict[str, Any]]) -> str:
    own = [line for line in lines if line["block"] == name]
    ends = [line for line in own if "ended" in line]
    rows = [{k: v for k, v in line.items() if k != "block"} for line in own if "ended" not in line]
    said = ", ".join(f"{line['ended']} after {line['seconds']} s" for line in ends) or "not measured on a GPU"
    parts = [f"\n## {_ABOUT[name]}\n", f"{said[0].upper()}{said[1:]}.\n"]
    # Rows of one shape share a table.
    for keys in dict.fromkeys(tuple(row) for row in rows):
        same = [row for row in rows if tuple(row) == keys]
        parts.append("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
        parts += ["| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in same]
        parts.append("")
    return "\n".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "**no**", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_cell(inner)}" for key, inner in value.items())
    return str(value).replace("|", "/")
