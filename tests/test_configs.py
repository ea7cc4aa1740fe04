"""Every YAML under conf/ is parsed, instantiated and trained for one step."""

import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from lightning_dp.cli import main

ROOT = Path(__file__).parents[1]
# What says that a file is of the image half, by a class's public name.
IMAGES = re.compile(
    r"lightning_dp\.(images\.|LatentDiffusion|Autoencoder|Image|CrossAttentionUNet|StableDiffusion)"
)
# Controls and adapters are laid over a whole recipe, in test_controls.py and adapters/test_fragments.py;
# images have images/test_image_configs.py, the papers' recipes papers/test_recipes.py, rules of evolution
# images/test_private_evolution.py.
RECIPES = sorted(
    path
    for path in ROOT.glob("conf/**/*.yaml")
    if path.parent.name not in ("controls", "adapter", "ablation", "papers", "timedit", "rules")
    and path.stem not in ("gpu", "gpus", "timedit_4x64", "timedit_96")  # laid over a recipe of papers/
    and not IMAGES.search(path.read_text())
)
# What a fragment lacks is taken from these, so that each is run in a whole recipe.
PARTNERS = {
    "data": ROOT / "conf" / "data" / "simulator.yaml",
    "model": ROOT / "conf" / "model" / "dit_vanilla.yaml",
    "trainer": ROOT / "conf" / "trainer" / "cpu.yaml",
}
ONE_STEP = [
    "--trainer.max_steps=1",
    "--trainer.limit_test_batches=1",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--run.wandb=disabled",
    "--model.init_args.num_samples=2",
]


def test_there_are_recipes():
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_runs_one_step(path, tmp_path):
    keys = yaml.safe_load(path.read_text())
    needs_files = any(name in path.read_text().lower() for name in ("etth1", "smartmeter"))
    if needs_files and not os.environ.get("LIGHTNING_DP_DATA"):
        pytest.skip("needs the ETT and smart-meter data: set LIGHTNING_DP_DATA")
    # A model without a class, as of a normaliser, is laid over the partner.
    whole = {key for key in keys if key != "model" or "class_path" in keys[key]}
    configs = [partner for key, partner in PARTNERS.items() if key not in whole]
    start = f"runs/{path.stem}_public"
    own = tmp_path / path.name
    own.write_text(path.read_text().replace(f"start_from: {start}", f"start_from: {tmp_path / start}"))
    if own.read_text() != path.read_text():
        public = path.with_name(f"{path.stem}_public.yaml")
        assert main(["fit", f"--config={public}", f"--run.dir={tmp_path / start}", *ONE_STEP]) == 0
    arguments = [f"--config={config}" for config in [*configs, own]]
    units = [] if not keys.get("privacy") else ["--privacy.expected_batch_size=8"]
    assert main(["fit", *arguments, f"--run.dir={tmp_path / 'run'}", *ONE_STEP, *units]) == 0
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("fragment", ["gpu", "gpus"])
def test_the_fragments_for_gpus_say_where_there_is_none(fragment, tmp_path, capsys):
    recipe, over = ROOT / "conf/experiment/demo_simulator.yaml", ROOT / f"conf/trainer/{fragment}.yaml"
    if torch.cuda.is_available():
        pytest.skip("there is one")
    folder = tmp_path / "run"
    assert main(["fit", f"--config={recipe}", f"--config={over}", f"--run.dir={folder}"]) == 2
    assert "sees no GPU on this machine: set --trainer.accelerator auto" in capsys.readouterr().err
    assert not folder.exists()


def test_no_recipe_is_tied_to_a_cpu():
    recipes = sorted(ROOT.glob("conf/experiment/**/*.yaml"))
    trainers = {path.stem: yaml.safe_load(path.read_text()).get("trainer", {}) for path in recipes}
    chosen = {name: own["accelerator"] for name, own in trainers.items() if "accelerator" in own}
    assert len(chosen) > 10
    assert set(chosen.values()) == {"auto"}, chosen


def test_on_a_mac_auto_is_the_cpu_and_mps_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "_get_default_mps_generator", torch.Generator)
    recipe = ROOT / "conf/experiment/demo_simulator.yaml"
    common = ["fit", f"--config={recipe}", *ONE_STEP, "--privacy.expected_batch_size=8", "--run.test=false"]
    assert main([*common, f"--run.dir={tmp_path / 'auto'}"]) == 0
    for chosen in ("mps", "gpu"):
        refused = [f"--run.dir={tmp_path / chosen}", f"--trainer.accelerator={chosen}"]
        assert main([*common, *refused]) == 2
        assert "MPS has no float64" in capsys.readouterr().err
        assert not (tmp_path / chosen).exists()
