"""Every image YAML under conf/ is parsed, instantiated and trained for one step on the real data."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lightning_dp.cli import main

ROOT = Path(__file__).parents[2]
# What says that a file is of the image half, by a class's public name.
IMAGES = re.compile(
    r"lightning_dp\.(images\.|LatentDiffusion|Autoencoder|Image|CrossAttentionUNet|StableDiffusion)"
)
RECIPES = sorted(
    path
    for path in ROOT.glob("conf/**/*.yaml")
    if path.parent.name not in ("adapter", "evolution", "evaluation", "papers")
    and path.stem != "stable_diffusion"  # needs a checkpoint, which test_stable_diffusion.py makes
    and IMAGES.search(path.read_text())
)
# What a fragment lacks is taken from these, so that each is run in a whole recipe.
PARTNERS = {
    "data": ROOT / "conf" / "data" / "mnist.yaml",
    "model": ROOT / "conf" / "model" / "image_dit.yaml",
    "trainer": ROOT / "conf" / "trainer" / "cpu.yaml",
}
ONE_STEP = [
    "--trainer.max_steps=1",
    "--trainer.limit_test_batches=1",
    "--trainer.enable_progress_bar=false",
    "--data.init_args.batch_size=8",
    "--run.wandb=disabled",
]


def test_there_are_recipes():
    assert len(RECIPES) >= 6


@pytest.mark.skipif(not os.environ.get("LIGHTNING_DP_DATA"), reason="needs images: set LIGHTNING_DP_DATA")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_runs_one_step(path, tmp_path):
    recipe = yaml.safe_load(path.read_text())
    for callback in recipe.get("trainer", {}).get("callbacks", []):
        # The run of the earlier stage is not here; from what it starts is tested in test_latent_diffusion.py.
        if "start_from" in callback.get("init_args", {}):
            callback["init_args"]["start_from"] = None
    own = tmp_path / path.name
    own.write_text(yaml.safe_dump(recipe))
    configs = [*(partner for key, partner in PARTNERS.items() if key not in recipe), own]
    private = ["--privacy.expected_batch_size=8"]
    arguments = [f"--config={config}" for config in configs]
    arguments += [*ONE_STEP, *(private if recipe.get("privacy") else [])]
    assert main(["fit", *arguments, f"--run.dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.skipif(not os.environ.get("LIGHTNING_DP_DATA"), reason="needs images: set LIGHTNING_DP_DATA")
def test_the_stage_after_the_autoencoder_works_as_its_recipe_prints_it(tmp_path, monkeypatch):
    head = (ROOT / "conf" / "experiment" / "fashion_mnist_autoencoder.yaml").read_text()
    lines = "\n".join(line.removeprefix("#") for line in head.splitlines() if line.startswith("#"))
    commands = re.findall(r"lightning-dp (fit .*)", lines.replace("\\\n", " "))
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    for command in commands:
        assert main([*shlex.split(command), *ONE_STEP]) == 0, command
    assert (tmp_path / "runs" / "latents_public" / "checkpoints" / "last.ckpt").is_file()
