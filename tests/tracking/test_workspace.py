"""The views in W&B: their axes, and that the unmodified client saves them."""

import json
from typing import Any

import pytest
from wandb_server import ENTITY, WandbServer

from lightning_dp.cli import main

KEY = "k" * 40


class ViewServer(WandbServer):
    """The stand-in, with what saving a view asks for."""

    def __init__(self) -> None:
        super().__init__(key=KEY)
        self.views: list[dict[str, Any]] = []

    def _on_UpsertView2(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.views.append({**sent, "spec": json.loads(sent["spec"])})
        view = {"id": f"view{len(self.views)}", "name": sent["name"], "type": sent["type"]}
        project = {"id": "1", "name": sent["projectName"], "entityName": sent["entityName"]}
        view |= {name: sent[name] for name in ("displayName", "description", "spec")}
        return {"upsertView": {"view": {**view, "project": project, "updatedAt": None}, "inserted": True}}

    _on_upsertView = _on_UpsertView2

    def _on_GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def _on_ProjectInternalId(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "1", "internalId": "1"}}

    def _on_GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:
        none = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"models": none, "projects": none}

    def _on_CreateProject(self, sent: dict[str, Any]) -> dict[str, Any]:
        assert self.views == []  # a view needs its project
        given = sent["input"]
        names = {"name": given["name"], "entityName": given["entityName"]}
        project = {"id": "1", **names, "description": None, "access": None, "views": None}
        return {"result": {"project": project, "model": project, "inserted": True}}


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Section → its panels."""
    return {part["name"]: part["panels"] for part in spec["section"]["panelBankConfig"]["sections"]}


@pytest.fixture
def printed(capsys, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    # No server is asked: with this address and key nothing could be.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["workspace", "--dry-run", "--project=p", "--metric=crps", "--metric=accuracy"]) == 0
    return json.loads(capsys.readouterr().out)


def test_axes_are_the_plain_names(printed):
    found = panels(printed["workspace"]["spec"])
    assert list(found) == ["Quality", "Saliency ratio", "Training", "Figures", "Nonprivate"]
    quality = [panel["config"] for panel in found["Quality"] if panel["viewType"] == "Scatter Plot"]
    assert [(p["xAxis"], p["yAxis"], p["xAxisLogScale"]) for p in quality] == [
        ("summary:epsilon", "summary:test/crps", True),
        ("summary:epsilon", "summary:test/accuracy", True),
    ]
    assert [p["chartTitle"] for p in quality] == [
        "CRPS against ε, lower is better",
        "accuracy against ε, higher is better",
    ]
    assert all("${config:method}" in p["legendTemplate"] for p in quality)
    bars = [panel["config"] for panel in found["Quality"] if panel["viewType"] == "Bar Chart"]
    assert [(p["groupBy"], p["groupAgg"], p["groupArea"]) for p in bars] == [
        ("method.value", "mean", "stderr")
    ] * 2
    assert [p["config"]["xAxis"] for p in found["Saliency ratio"]] == ["config:saliency_ratio.value"] * 2
    assert found["Training"][0]["config"]["metrics"] == ["privacy/epsilon"]
    figures = ["forecast_fan", "imputation_fan", "synthesis", "sample_grid"]
    assert found["Figures"][0]["config"]["mediaKeys"] == [f"plots/{name}" for name in figures]
    sections = printed["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [part["isOpen"] for part in sections] == [True, True, True, True, False]


def test_what_is_private_is_in_the_section_that_says_so(printed):
    for name, found in panels(printed["workspace"]["spec"]).items():
        assert ("nonprivate" in json.dumps(found)) == (name == "Nonprivate")


def test_the_report_has_the_same_panels(printed):
    grids = [block for block in printed["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    of_report = [
        [panel["viewType"] for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]
        for grid in grids
    ]
    of_workspace = [
        [panel["viewType"] for panel in found] for found in panels(printed["workspace"]["spec"]).values()
    ]
    assert of_report == of_workspace


def test_the_client_saves_both(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    with ViewServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        assert main(["workspace", "--metric=mse", "--name=Sweep"]) == 0
        assert server.unknown == []
    report, workspace = server.views
    assert [workspace["entityName"], report["entityName"]] == [ENTITY, ENTITY]
    assert [workspace["type"], report["type"]] == ["project-view", "runs"]
    assert [workspace["displayName"], report["displayName"]] == ["Sweep", "Sweep"]
    assert "summary:test/mse" in json.dumps(panels(workspace["spec"])["Quality"])
    assert server.url in capsys.readouterr().out


def test_mistakes_are_one_sentence(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    assert main(["workspace", "--dry-run", "--metric=mse", "--metric=mse"]) == 2
    assert "each once" in capsys.readouterr().err
    with ViewServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "w" * 40)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        assert main(["workspace", "--metric=mse"]) == 2
    assert "--dry-run" in capsys.readouterr().err
