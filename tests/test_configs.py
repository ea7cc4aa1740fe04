"""Every YAML under conf/ and sweeps/ is parsed, instantiated and trained for one step."""

import os
from pathlib import Path

import pytest
import yaml

from lightning_dp.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*ROOT.glob("conf/**/*.yaml"), *ROOT.glob("sweeps/**/*.yaml")])
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
    needs_ett = "etth1" in path.read_text().lower() and not os.environ.get("LIGHTNING_DP_DATA")
    if needs_ett:
        pytest.skip("needs the ETT data: set LIGHTNING_DP_DATA")
    configs = [partner for key, partner in PARTNERS.items() if key not in keys]
    arguments = [f"--config={config}" for config in [*configs, path]]
    units = [] if "privacy" not in keys else ["--privacy.expected_batch_size=8"]
    assert main(["fit", *arguments, f"--run.dir={tmp_path / 'run'}", *ONE_STEP, *units]) == 0
    assert (tmp_path / "run" / "results.json").exists()
