"""Every recipe under conf/experiment at toy size, command line to test, on a device that is not there."""

import pytest
from fake_device import fake_device
from toy_recipes import RECIPES, toy

from lightning_dp.cli import main

# diffusers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_there_are_recipes():
    assert len(RECIPES) >= 12


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_mixes_no_devices(recipe, tmp_path):
    config = toy(recipe, tmp_path)
    with fake_device() as seen:
        assert main(["fit", f"--config={config}", f"--run.dir={tmp_path / 'run'}"]) == 0
    assert not seen.mixed
    assert seen.kernels.total() > 100
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
