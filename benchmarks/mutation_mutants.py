"""The mutants of one source file: cosmic-ray's operators make them, one change each.

Left out are changes that can't reach a number: in annotations, of the bare star of a signature, and inside
formatted strings that only a message shows. (cosmic-ray changes no other string, so docstrings are never
touched.)
"""

import ast
import hashlib
from collections import Counter
from dataclasses import dataclass
from difflib import unified_diff

_SAYS = {"_require", "warn", "warning", "info", "ValueError", "RuntimeError", "TypeError"}
"""Calls whose formatted strings are read by people only."""

Span = tuple[int, int, int, int]
"""First line and column, last line and column, lines from 1 and columns from 0, in characters."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of a file.

    Attributes:
        key: of the change and what stands around it, the same as long as those lines stay.
        operator: cosmic-ray's name of the kind of change.
        occurrence: which of the file's places for it.
        line: of the change, from 1.
        statement: lines of the innermost statement around it; of a compound one its head only.
    """

    key: str
    operator: str
    occurrence: int
    line: int
    statement: range

    def of(self, source: str) -> str:
        """The changed file."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        changed = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        assert changed is not None
        return changed


def mutants_of(source: str) -> tuple[list[Mutant], int]:
    """Every mutant of a file in the order of its lines, and how many more were left out."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    lines = source.splitlines()
    tree, nodes = ast.parse(source), list(ast_nodes(get_ast(source)))
    unseen = _unseen(tree, lines)
    made: list[Mutant] = []
    left_out = 0
    keys: Counter[str] = Counter()
    for name in operator_names():
        if get_operator(name).arguments():
            continue
        operator = get_operator(name)()
        places = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(places):
            star = lines[start[0] - 1][start[1] : start[1] + 2] == "*,"
            if star or any(_within((*start, *end), span) for span in unseen):
                left_out += 1
                continue
            around = (name, start[1], end[1], lines[max(0, start[0] - 3) : start[0] + 2])
            key = hashlib.sha1(repr(around).encode()).hexdigest()[:16]
            keys[key] += 1
            made.append(
                Mutant(
                    key=f"{key}-{keys[key]}",
                    operator=name,
                    occurrence=occurrence,
                    line=start[0],
                    statement=_statement(tree, start[0], end[0]),
                )
            )
    return sorted(made, key=lambda one: one.line), left_out


def change(source: str, changed: str) -> list[str]:
    """The removed and the added lines, with their signs."""
    diff = unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
    return [line[0] + line[1:].strip() for line in diff if not line.startswith(("---", "+++", "@@"))]


def _unseen(tree: ast.Module, lines: list[str]) -> list[Span]:
    """Where a change is seen by no number: annotations, and formatted strings of messages."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            found.append(node.returns)
        says = isinstance(node, ast.Call) and _name(node.func) in _SAYS
        if says or isinstance(node, ast.Raise):
            found.extend(one for one in ast.walk(node) if isinstance(one, ast.JoinedStr))
    return [_span(node, lines) for node in found]


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _span(node: ast.AST, lines: list[str]) -> Span:
    """ast counts columns in bytes; parso, and so cosmic-ray, in characters."""
    first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
    start = len(lines[first - 1].encode()[: node.col_offset].decode())  # type: ignore[attr-defined]
    return first, start, last, len(lines[last - 1].encode()[: node.end_col_offset].decode())  # type: ignore[attr-defined]


def _within(inner: Span, outer: Span) -> bool:
    return outer[:2] <= inner[:2] and inner[2:] <= outer[2:]


def _statement(tree: ast.Module, first: int, last: int) -> range:
    innermost = range(first, last + 1)
    size = float("inf")
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or not node.lineno <= first <= (node.end_lineno or 0):
            continue
        if (node.end_lineno or 0) - node.lineno < size:
            size = (node.end_lineno or 0) - node.lineno
            body = getattr(node, "body", None)
            head = body[0].lineno - 1 if body else node.end_lineno or 0
            innermost = range(min(node.lineno, first), max(head, node.lineno, last) + 1)
    return innermost
