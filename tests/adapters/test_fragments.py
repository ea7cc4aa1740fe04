"""Every fragment under conf/adapter, laid over the image recipe, trains for a step and does what it says."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from images.image_support import CLASSES, pictures

from lightning_dp.images.run import load_module
from lightning_dp.lightning_cli import Cli, run

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "conf" / "experiment" / "fashion_mnist.yaml"
FRAGMENTS = {path.stem: path for path in sorted((ROOT / "conf" / "adapter").glob("*.yaml"))}


def _fit(name: str, folder: Path) -> Cli:
    """The recipe with other, few, small images, and without the earlier stage's weights."""
    for split, count in (("train", 24), ("test", 6)):
        images, labels = pictures(count, size=28)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["data"]["init_args"]["source"] = {
        "class_path": "lightning_dp.images.data.npz.NPZ",
        "init_args": {"path": str(folder), "class_names": CLASSES},
    }
    recipe["model"]["init_args"]["net"]["init_args"] |= {"hidden_size": 16}
    del recipe["model"]["init_args"]["base_denoiser"]  # a share of a target
    recipe["trainer"]["callbacks"] = [recipe["trainer"]["callbacks"][0]]
    recipe["trainer"] |= {"max_steps": 1, "enable_progress_bar": False}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Given rather than calibrated, which would take longer than all else.
    given = ["--privacy.target_epsilon=null", "--privacy.noise_multiplier=4"]
    if EXPECTED[name].get("saliency_score") == "GradNorm":
        given += ["--model.init_args.adapter.init_args.noise_multiplier=3"]
    return run(
        [
            "fit",
            f"--config={folder / 'recipe.yaml'}",
            f"--config={FRAGMENTS[name]}",
            f"--run.dir={folder / 'run'}",
            "--run.wandb=disabled",
            "--privacy.delta=1e-2",
            "--privacy.expected_batch_size=8",
            *given,
        ]
    )


EXPECTED = {
    "full": {"adapter": "Full"},
    "attention": {"adapter": "Attention"},
    "modulation": {"adapter": "ModulationOnly"},
    "norm_affine": {"adapter": "NormAffine"},
    "dylora": {"adapter": "DyLoRA", "lora_rank": 8, "lora_rank_drawn": "uniform"},
    "lora": {"adapter": "LoRA", "lora_rank": 4},
    "lora_embedder": {"adapter": "LoRA+Embedder", "lora_rank": 4},
    "saliency_lora": {"saliency_score": "GradNorm", "saliency_ratio": 0.3, "chosen_matrices": 5},
    "layer_lora": {"saliency_score": "GradNorm", "saliency_pieces": "layers", "chosen_matrices": 4},
    "random_lora": {"saliency_score": "RandomScore", "chosen_matrices": 5},
    "public_lora": {"saliency_score": "PublicScore", "chosen_matrices": 5},
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_trains(name, tmp_path):
    if name == "public_lora" and not os.environ.get("LIGHTNING_DP_DATA"):
        pytest.skip("needs the public garments: set LIGHTNING_DP_DATA")
    cli = _fit(name, tmp_path)
    assert cli.trainer.global_step == 1
    facts = json.loads((tmp_path / "run" / "results.json").read_text())["facts"]
    assert EXPECTED[name].items() <= facts.items()
    if "saliency_score" in EXPECTED[name]:
        _check_choice(cli, tmp_path / "run", paid=facts["saliency_score"] == "GradNorm")


def _check_choice(cli: Cli, folder: Path, *, paid: bool) -> None:
    """It is in the run folder, in the privacy report and in what is loaded from the checkpoint."""
    report = json.loads((folder / "saliency.json").read_text())
    assert (folder / "plots" / "saliency.png").exists()
    privacy = json.loads((folder / "privacy.json").read_text())
    released = [event["noise_multiplier"] for event in privacy["prior_releases"]]
    assert released == ([report["noise_multiplier"]] if paid else []) == ([3.0] if paid else [])
    module = load_module(folder)
    selection = module.adapter.selection
    assert selection.report() == report["matrices"] == cli.model.adapter.selection.report()
    assert module.facts()["chosen_matrices"] == int(selection.chosen.sum())
    assert module.facts()["trainable_parameters"] == cli.model.facts()["trainable_parameters"]
    state, loaded = cli.model.state_dict(), module.state_dict()
    assert all(bool((loaded[name] == value).all()) for name, value in state.items())
