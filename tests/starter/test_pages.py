"""The whole recipes of the pages on tables and images of one's own train as they stand, at toy size."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lightning_dp.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of numpy

ROOT = Path(__file__).parents[2]
TOY = ["--trainer.max_steps=1", "--trainer.enable_progress_bar=false", "--run.test=false"]


def recipe(page: str) -> str:
    """The first YAML of a page."""
    found = re.search(r"^```yaml\n(seed_everything.*?)^```$", (ROOT / "docs" / page).read_text(), re.S | re.M)
    assert found is not None
    return found[1]


def test_the_recipe_for_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2024-04-01", periods=200, freq="h").strftime("%Y-%m-%d %H:%M")
    parts = [
        pd.DataFrame(
            {
                "meter": f"m{number}",
                "time": stamps,
                "kwh": rng.random(200),
                "celsius": 10.0,
                "tariff": rng.choice(["day", "night", "flat"], 200),
            }
        )
        for number in range(30)
    ]
    pd.concat(parts).to_csv("readings.csv", index=False)
    (tmp_path / "my.yaml").write_text(recipe("own_tables.md"))
    fewer = ["--privacy.expected_batch_size=4", "--data.init_args.cache_dir=cache"]
    fewer += ["--data.init_args.windows_per_user=1", "--model.init_args.net.init_args.hidden_size=8"]
    # Noise that is given need not be calibrated, which takes long for so few steps.
    fewer += ["--privacy.target_epsilon=null", "--privacy.noise_multiplier=2"]
    assert main(["fit", "--config=my.yaml", "--run.dir=run", *TOY, *fewer]) == 0
    assert (tmp_path / "run" / "privacy.json").is_file()


def test_the_recipe_for_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        folder = tmp_path / "pets" / "train" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 255, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "my.yaml").write_text(recipe("own_images.md"))
    fewer = [
        "--privacy.expected_batch_size=8",
        "--privacy.delta=1e-2",
        "--model.init_args.net.init_args.depth=1",
    ]
    assert main(["fit", "--config=my.yaml", "--run.dir=run", *TOY, *fewer]) == 0
    assert (tmp_path / "run" / "privacy.json").is_file()
