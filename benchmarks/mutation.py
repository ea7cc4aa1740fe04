"""Do tests notice when a line that ε rests on is changed? Mutants by cosmic-ray, file by file.

    pip install cosmic-ray==8.7.0
    python benchmarks/mutation.py --only noise --json docs/results/mutation.json

Every operator, number and condition of a file is changed, one at a time, in a copy of the checkout; the tests
named beside the file have to fail. Sessions are kept in --work, so that a run that was stopped goes on by the
same command. A mutant that survives either changes nothing (the page says why) or lacks a test.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from result_file import write

from lightning_dp.tracking.tables import Table, markdown

ROOT = Path(__file__).parents[1]
_ENGINES = "tests/privacy/clipping"
TARGETS: dict[str, tuple[str, str]] = {
    "noise": ("lightning_dp/privacy/noise.py", "tests/privacy/test_sampling_and_noise.py"),
    "sampling": ("lightning_dp/privacy/sampling.py", "tests/privacy/test_sampling_and_noise.py"),
    "functions": (
        "lightning_dp/privacy/clipping/functions.py",
        f"tests/faults/test_functions.py {_ENGINES}/test_engine.py",
    ),
    "unit sums": (
        "lightning_dp/privacy/clipping/unit_sums.py",
        f"{_ENGINES}/test_engine.py {_ENGINES}/test_traps.py",
    ),
    "uses": (
        "lightning_dp/privacy/clipping/uses.py",
        f"{_ENGINES}/test_ways.py {_ENGINES}/test_magnitudes.py",
    ),
    "exact": (
        "lightning_dp/privacy/clipping/exact.py",
        f"{_ENGINES}/test_ways.py {_ENGINES}/test_magnitudes.py",
    ),
    "accounting": ("lightning_dp/privacy/accounting.py", "tests/privacy/test_accounting.py"),
    "plan": ("lightning_dp/privacy/plan.py", "tests/privacy/test_plan.py"),
    "charging": ("lightning_dp/privacy/charging.py", "tests/privacy/test_charging.py"),
    "ranks": ("lightning_dp/privacy/ranks.py", "tests/strategies"),
}
"""By name: a file, and the tests that have to fail."""

_CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests}"

[cosmic-ray.distributor]
name = "local"
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one mutant's tests")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mutation")
    parser.add_argument("--cosmic-ray", default="cosmic-ray", help="the program")
    parser.add_argument("--again", action="store_true", help="try those once more that survived")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what there is")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for name in options.only:
        if not options.collect:
            if options.again:
                _forget_survivors(options.work / name.replace(" ", "_") / "session.sqlite")
            _run(name, work=options.work.resolve(), timeout=options.timeout, program=options.cosmic_ray)
    rows = [row for name in TARGETS if (row := _row(name, work=options.work, program=options.cosmic_ray))]
    print(markdown([_table(rows)]))
    if options.json:
        write(options.json, rows=rows)


def _run(name: str, *, work: Path, timeout: float, program: str) -> None:
    """Try the mutants of one file that were not tried yet."""
    module, tests = TARGETS[name]
    folder = work / name.replace(" ", "_")
    checkout, session = folder / "checkout", folder / "session.sqlite"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(module=module, timeout=timeout, python=sys.executable, tests=tests))
    if checkout.exists():
        shutil.rmtree(checkout)  # what a killed run left may be mutated
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache"))
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    if not session.exists():
        subprocess.run(
            [program, "init", str(config), str(session)], cwd=checkout, env=environment, check=True
        )
    subprocess.run([program, "exec", str(config), str(session)], cwd=checkout, env=environment, check=True)


def _forget_survivors(session: Path) -> None:
    """As if they had not been tried: tests were added since."""
    if session.exists():
        with closing(sqlite3.connect(session)) as connection, connection:
            connection.execute("DELETE FROM work_results WHERE test_outcome = 'SURVIVED'")


def _row(name: str, *, work: Path, program: str) -> dict[str, Any] | None:
    session = work / name.replace(" ", "_") / "session.sqlite"
    if not session.exists():
        return None
    dumped = subprocess.run(
        [program, "dump", str(session)], capture_output=True, text=True, check=True
    ).stdout
    tried, left, survivors = 0, 0, []
    for line in dumped.splitlines():
        item, result = json.loads(line)
        if result is None:
            left += 1
            continue
        tried += 1
        if result["test_outcome"] == "survived":
            changed = [
                one for one in (result["diff"] or "").splitlines() if one[:1] in "+-" and one[1:2] != one[:1]
            ]
            line_number = item["mutations"][0]["start_pos"][0]
            survivors.append({"line": line_number, "change": [one.strip() for one in changed]})
    module, tests = TARGETS[name]
    return {
        "file": module,
        "tests": tests,
        "mutants": tried,
        "caught": tried - len(survivors),
        "not_tried": left,
        "survivors": survivors,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    counts = [(row["mutants"], row["caught"], len(row["survivors"]), row["not_tried"]) for row in rows]
    return Table(
        title="Mutants",
        header=["file", "mutants", "caught", "survived", "not tried"],
        cells=[[row["file"], *map(str, some)] for row, some in zip(rows, counts, strict=True)],
    )


if __name__ == "__main__":
    main()
