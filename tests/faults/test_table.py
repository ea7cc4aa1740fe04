"""The table of planted faults says what there is."""

import ast
import re
from functools import cache
from pathlib import Path
from string import ascii_lowercase

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "faults.md"

WAYS = {
    23: 8,
    24: 7,
    25: 17,
    26: 3,
    27: 3,
    28: 5,
    29: 6,
    30: 4,
    31: 4,
    32: 3,
    33: 6,
    34: 4,
    35: 2,
    36: 4,
    37: 7,
    38: 2,
}
"""Kinds of which each way has a row of its own, P23a, P23b …; P1 to P22 are a row each."""
FAULTS = [f"P{kind}" for kind in range(1, 23)]
FAULTS += [f"P{kind}{letter}" for kind, many in WAYS.items() for letter in ascii_lowercase[:many]]


def mistakes(page: str) -> list[str]:
    """Faults that are missing, rows without a guard or a test, and tests that don't exist."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    rows = [row for row in rows if re.fullmatch(r"P\d+[a-z]?", row[0])]
    found = []
    if [row[0] for row in rows] != FAULTS:
        found.append("each of FAULTS must be there once, in order")
    for number, fault, guard, tests in rows:
        named = re.findall(r"`([^`]+)`", tests)
        if not (fault and guard and named):
            found.append(f"{number} lacks a fault, a guard or a test")
        found += [f"{number}: there is no {test}" for test in named if not exists(test)]
    return found


@cache
def exists(test: str) -> bool:
    """Whether `tests/FILE.py::NAME` is a function of that file that pytest runs."""
    path, _, name = test.partition("::")
    file = ROOT / path
    if not (file.is_file() and file.name.startswith("test_") and name.startswith("test_")):
        return False
    functions = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
    return any(function.name == name for function in functions)


def test_every_fault_has_a_test_that_exists():
    assert mistakes(PAGE.read_text()) == []


def test_planted_mistakes_in_the_table_are_named():
    page = PAGE.read_text()
    lines = page.splitlines(keepends=True)
    assert mistakes("".join(line for line in lines if not line.startswith("| P9 ")))
    assert mistakes("".join(line for line in lines if not line.startswith("| P36d ")))
    assert mistakes(page.replace("::test_p1_shuffled_batches`", "::test_p1_shuffled_batch`"))
    assert mistakes(re.sub(r"`tests/replay/test_planted.py::test_p22[^|]*", "", page))
