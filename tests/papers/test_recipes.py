"""Every recipe of a paper, end to end: privately, by the default engine, through test, evaluation and report.

`recipes.py` says how each is made small; a recipe without an entry there fails. Papers whose
recipes need each other, or a checkpoint, have a module of their own.
"""

import json
from pathlib import Path

import pytest
import yaml
from made_up_series import write_ett
from recipes import CONF, PAPERS, RECIPES, ROOT

from lightning_dp.cli import main
from lightning_dp.lightning_cli import run as run_cli
from lightning_dp.sweeps.command import build_command, fit_arguments
from lightning_dp.sweeps.parameters import assemble
from lightning_dp.sweeps.sweep import read_sweep
from lightning_dp.timeseries.data import ett

FILES = sorted(path for path in PAPERS.glob("*.yaml") if not path.stem.startswith("dpldm_"))
SWEEPS = sorted(ROOT.glob("sweeps/papers/timedit_*.yaml"))
MODULES = {"timedit": "test_recipes.py", "dpldm": "test_dpldm.py", "dpsapf": "test_dpsapf.py"}
CONTROLS = sorted(CONF.glob("controls/timedit/*.yaml"))
OPERATORS = ("tanh", "soft_clamp_band", "hard_clamp", "clamp_ste")
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


def _overrides(name: str, place: Path) -> list[str]:
    return [*SMALL, *(one.replace("{place}", str(place)) for one in RECIPES[name].toy)]


def _configs(name: str) -> list[str]:
    return [
        f"--config={one}" for one in [*(CONF / o for o in RECIPES[name].configs), PAPERS / f"{name}.yaml"]
    ]


def test_every_recipe_has_an_entry_and_every_entry_a_recipe():
    assert {path.stem for path in FILES} == set(RECIPES)


def test_every_recipe_and_sweep_of_a_paper_belongs_to_a_module_that_runs_it():
    files = [*PAPERS.glob("*.yaml"), *ROOT.glob("sweeps/papers/*.yaml")]
    papers = {path.stem.split("_")[0] for path in files}
    assert papers <= set(MODULES)
    for paper in papers:  # by a glob of its own
        assert f"{paper}_" in (Path(__file__).parent / MODULES[paper]).read_text(), paper


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_runs_from_its_first_stage_to_its_report(name, data, tmp_path, capsys):
    recipe, place = RECIPES[name], str(tmp_path)
    more = recipe.files(data)
    for stage in recipe.before:
        assert main([part.replace("{place}", place) for part in stage]) == 0, stage
    run = tmp_path / "run"
    privacy = yaml.safe_load((PAPERS / f"{name}.yaml").read_text()).get("privacy") or {}
    # Calibration would take longer than all else; the dry run has it. A recipe's own noise stays.
    given = ["--privacy.target_epsilon=null", "--privacy.noise_multiplier=4"]
    given = given if "target_epsilon" in privacy else []
    batch = ["--privacy.expected_batch_size=8", *given] if recipe.private else []
    arguments = [*_configs(name), *_overrides(name, tmp_path), *batch, *more]
    assert main(["fit", *arguments, f"--run.dir={run}"]) == 0
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


@pytest.mark.parametrize("name", [name for name, recipe in sorted(RECIPES.items()) if recipe.private])
def test_the_dry_run_of_a_recipe_says_what_its_fit_would_need(name, data, tmp_path, ledger_path, capsys):
    more = RECIPES[name].files(data)
    for stage in RECIPES[name].before:
        assert main([part.replace("{place}", str(tmp_path)) for part in stage]) == 0, stage
    capsys.readouterr()
    configs = [one.removeprefix("--config=") for one in _configs(name)]
    batch = ["--privacy.expected_batch_size=8"]
    assert main(["check", *configs, "--needs", *_overrides(name, tmp_path), *batch, *more]) == 0
    said = capsys.readouterr().out
    for what in ("time     about", "memory   about", "weights  ", "data     "):
        assert what in said
    assert not ledger_path.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_trial_of_a_sweep_runs_from_its_fit_to_its_report(path, data, tmp_path, capsys):
    """The last one of its grid; what each value makes is tests/sweeps' business."""
    sweep = read_sweep(path)
    *_, last = sweep.points()
    arguments = fit_arguments(build_command(sweep, assemble(last)))
    assert arguments is not None
    used = [name for name in RECIPES if f"--config=conf/experiment/papers/{name}.yaml" in arguments]
    assert used, "a sweep of a paper starts from one of its recipes"
    more = [one for name in used for one in RECIPES[name].files(data)]
    if "--data.init_args.name=ETTm1" in arguments:
        write_ett(data, "ETTm1")
    run = tmp_path / "run"
    small = [*_overrides(used[-1], tmp_path), "--privacy.expected_batch_size=8", f"--run.dir={run}"]
    assert main([*arguments, *small, *more]) == 0
    assert sweep.metric is not None
    assert sweep.metric.name in json.loads((run / "results.json").read_text())["metrics"]
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "|" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONTROLS, ids=lambda path: path.stem)
def test_a_control_of_timedit_trains(path, data, tmp_path):
    """Laid over the recipe for a CPU and its windows of 96; without privacy, which is not its matter."""
    write_ett(data, "ETTh1")
    small = [*_overrides("timedit_etth1", tmp_path), "--privacy=null", "--run.test=false"]
    fragments = (CONF / "model" / "timedit_4x64.yaml", CONF / "data" / "timedit_96.yaml")
    under = [*_configs("timedit_etth1"), *(f"--config={fragment}" for fragment in fragments)]
    cli = run_cli(["fit", *under, f"--config={path}", *small, f"--run.dir={tmp_path / 'run'}"])
    assert cli.trainer.global_step == 2
    assert cli.datamodule.length == 96
    modulation = cli.model.net.blocks[0].modulation
    limits = [getattr(bound, "limit", None) for bound in (modulation.scale_bound, modulation.gate_bound)]
    tightness = {"loose": 1.0, "tight": 0.75, "too_tight": 0.5}.get(path.stem, 0.9)
    whole = path.stem != "condition_only"
    assert limits == (pytest.approx([1.97 * tightness, 1.73 * tightness]) if whole else [None, None])
    norm = getattr(modulation.project, "max_norm", None)
    assert norm == (None if path.stem == "modulation_only" else pytest.approx(10.27 * tightness))
    assert modulation.literal == (path.stem == "literal")
    operator = path.stem.replace("_", "") if path.stem in OPERATORS else "tanh"
    assert not whole or type(modulation.scale_bound).__name__.lower() == operator


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_says_what_it_is_and_how_to_start_it(name):
    text = (PAPERS / f"{name}.yaml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert "lightning-dp fit" in head
    assert set(yaml.safe_load(text)) <= {"seed_everything", "data", "model", "privacy", "trainer", "run"}
