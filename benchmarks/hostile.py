"""Hand every hostile input of tests/hostile to the code; write docs/results/hostile.{md,json}."""

import contextlib
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import result_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "hostile"))

import of_images  # noqa: E402
import of_requests  # noqa: E402
import of_runs  # noqa: E402
import of_tables  # noqa: E402
from place import SECRET, Kind, Place  # noqa: E402

KINDS: list[Kind] = [*of_images.KINDS, *of_tables.KINDS, *of_runs.KINDS, *of_requests.KINDS]


def answered(kind: Kind) -> dict[str, Any]:
    """One row: what was said, and what else happened."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "place")
        os.environ["PATH"] = f"{place.programs}:{os.environ['PATH']}"
        with contextlib.chdir(place.folder):
            try:
                answer = kind.attack(place)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
        fine = bool(re.search(kind.answer, answer)) and SECRET not in answer and "\n" not in answer
        return {
            "family": kind.family,
            "input": kind.name,
            "answer": answer.replace(f"{place.folder}/", "").replace(str(place.folder), "."),
            "refused_in_one_sentence": fine,
            "executed": place.canary.exists(),
            "left": place.leftovers(),
        }


def page(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    wrong = [row for row in rows if not row["refused_in_one_sentence"] or row["executed"] or row["left"]]
    families = ", ".join(
        f"{count} {family}" for family, count in Counter(row["family"] for row in rows).items()
    )
    lines = [
        "# Hostile and broken input",
        "",
        f"{len(rows)} kinds ({families}): {len(rows) - len(wrong)} are refused in one sentence, with nothing "
        f"executed and nothing half-written; {len(wrong)} are not. By `python benchmarks/hostile.py`; the "
        "same table is tested by `tests/hostile`.",
        "",
        "| given as | input | answer |",
        "|---|---|---|",
    ]
    for row in rows:
        answer = row["answer"].replace("|", "\\|")[:240]
        lines.append(f"| {row['family']} | {row['input']} | {answer} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the table and write both files."""
    os.environ.pop("LIGHTNING_DP_DEBUG", None)
    os.environ.pop("LIGHTNING_DP_TRUST", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIGHTNING_DP_LEDGER"] = str(Path(folder) / "ledger.sqlite")
        rows = [answered(kind) for kind in KINDS]
    out = ROOT / "docs" / "results" / "hostile.json"
    result_file.write(out, rows=rows)
    out.with_suffix(".md").write_text(page(rows))


if __name__ == "__main__":
    main()
