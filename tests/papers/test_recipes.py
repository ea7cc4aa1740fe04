"""Every recipe of a paper, end to end: privately, by the default engine, through test, evaluation and report.

`recipes.py` says how each is made small; a recipe without an entry there fails.
"""

import json
from pathlib import Path

import pytest
import yaml
from recipes import CONF, PAPERS, RECIPES, ROOT

from lightning_dp.cli import main
from lightning_dp.timeseries.data import ett

FILES = sorted(PAPERS.glob("*.yaml"))
SMALL = [
    "--trainer.max_steps=2",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--run.wandb=disabled",
]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder for made-up files, under the name that all sources look in."""
    monkeypatch.setenv("LIGHTNING_DP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(ett, "_CHECKSUMS", dict(ett._CHECKSUMS))
    monkeypatch.chdir(ROOT)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def _arguments(name: str, data: Path) -> list[str]:
    recipe = RECIPES[name]
    configs = [CONF / one for one in recipe.configs]
    overrides = [one.replace("{place}", str(data.parent)) for one in recipe.toy]
    return [*(f"--config={one}" for one in [*configs, PAPERS / f"{name}.yaml"]), *SMALL, *overrides]


def test_every_recipe_has_an_entry_and_every_entry_a_recipe():
    assert {path.stem for path in FILES} == set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_runs_from_its_first_stage_to_its_report(name, data, tmp_path, capsys):
    recipe, place = RECIPES[name], str(tmp_path)
    more = recipe.files(data)
    for stage in recipe.before:
        assert main([part.replace("{place}", place) for part in stage]) == 0, stage
    run = tmp_path / "run"
    batch = ["--privacy.expected_batch_size=8"] if recipe.private else []
    assert main(["fit", *_arguments(name, data), *batch, *more, f"--run.dir={run}"]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["privacy"] is not None) == recipe.private
    if recipe.private:
        engine = config["privacy"]["clipping_engine"]
        assert engine is None or engine["class_path"].endswith(".BookKeeping")  # the default
        privacy = json.loads((run / "privacy.json").read_text())
        assert 0 < privacy["epsilon"] < float("inf")
    if recipe.evaluate:
        assert main(["evaluate", str(run)]) == 0
    scores = json.loads((run / "results.json").read_text())["metrics"]
    assert any(metric.startswith("test/") for metric in scores)
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "|" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_says_what_it_is_and_how_to_start_it(name):
    text = (PAPERS / f"{name}.yaml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert "lightning-dp fit" in head
    assert set(yaml.safe_load(text)) <= {"seed_everything", "data", "model", "privacy", "trainer", "run"}
