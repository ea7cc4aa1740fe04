"""The contracts between parts: every hook is in `protocols`, and nothing else asks for one by its name."""

import ast
import inspect
from pathlib import Path

import pytest
from torch import nn

import lightning_dp
from lightning_dp import protocols
from lightning_dp.protocols import HOOKS, NamesDataset, SeesMoreRows, hook_names, members, provides

PACKAGE = Path(lightning_dp.__file__).parent
ASKING = {"getattr", "hasattr"}


def hooks_asked_by_name(source: str) -> list[tuple[int, str]]:
    """(line, hook) of each `getattr` or `hasattr` that names a hook, alone or in a loop over names."""
    found = set()
    for scope in ast.walk(ast.parse(source)):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Module):
            continue
        inside = list(ast.walk(scope))
        for call in inside:
            named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ASKING
            if not named or len(call.args) < 2:
                continue
            name = call.args[1]
            if isinstance(name, ast.Constant):
                found |= {(call.lineno, name.value)} if name.value in hook_names() else set()
            elif not isinstance(scope, ast.Module):
                # A name that is computed: any hook that the function writes down may be meant.
                texts = {node.value for node in inside if isinstance(node, ast.Constant)}
                found |= {(call.lineno, text) for text in texts if text in hook_names()}
    return sorted(found)


def test_nobody_asks_for_a_hook_by_its_name():
    found = {
        f"{path.relative_to(PACKAGE)}:{line} {hook}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "protocols.py"
        for line, hook in hooks_asked_by_name(path.read_text())
    }
    assert not found


@pytest.mark.parametrize(
    "planted",
    [
        "def f(data):\n    return getattr(data, 'privacy_unit', None)",
        "rows = hasattr(module, 'rows_per_example')",
        "def f(data):\n    return [hasattr(data, n) for n in ('metric_mean', 'metric_std')]",
        "ask = lambda one: getattr(one, 'public', False)",
    ],
)
def test_a_hook_that_is_asked_for_by_its_name_is_found(planted):
    assert hooks_asked_by_name(planted)


def test_every_protocol_is_in_the_list_and_says_what_it_is():
    defined = {
        kind
        for kind in vars(protocols).values()
        if inspect.isclass(kind)
        and kind.__module__ == protocols.__name__
        and protocols.Protocol in kind.__bases__
    }
    assert defined == {hook.protocol for hook in HOOKS}
    for kind in defined:
        assert members(kind), kind
        for name, member in members(kind).items():
            told = inspect.getdoc(member) if inspect.isfunction(member) else inspect.getdoc(kind)
            assert told, (kind, name)
            assert inspect.isfunction(member) or name in told, (kind, name)


def test_a_property_that_fails_is_there_and_is_heard():
    class Data:
        @property
        def dataset_id(self):
            return self.missing

    data = Data()
    assert provides(data, NamesDataset)
    with pytest.raises(AttributeError, match="missing"):
        str(data.dataset_id)


def test_what_a_module_holds_counts_as_there():
    module = nn.Module()
    assert not provides(module, protocols.HasNet)
    module.net = nn.Linear(2, 2)  # torch keeps it in a table, not as an attribute
    assert provides(module, protocols.HasNet)
    assert not provides(module, SeesMoreRows)
