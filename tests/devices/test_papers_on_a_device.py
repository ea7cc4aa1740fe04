"""Every recipe under conf/experiment/papers at toy size on a device that is not there, stage after stage.

The toys are those of tests/papers, a step shorter. A step is followed operator by operator, as the engine
needs it, but not looked at otherwise: what preflight tries runs on this device in
test_recipes_on_a_device.py, and on these recipes in tests/papers.
"""

from pathlib import Path

import pytest
from dpldm_recipes import MAKE, STAGES
from dpldm_toys import PRIVATE, SMALL, vgg_file
from fake_device import fake_device
from recipes import CONF, PAPERS, RECIPES

from lightning_dp.callbacks import preflight
from lightning_dp.cli import main
from lightning_dp.privacy.preflight.following import find_unfollowed, learn_layout
from lightning_dp.timeseries.data import ett

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of numpy

ALONE = {name: [name] for name in RECIPES}
SYSTEMS = ALONE | {f"dpldm_{name}": [f"dpldm_{name}{stage}" for stage in STAGES] for name in MAKE}
HERE = [
    "--trainer.accelerator=gpu",
    "--trainer.precision=32-true",  # half precision is nothing that a CPU's operators could pretend
    "--trainer.max_steps=1",
    "--trainer.limit_val_batches=0",
    "--run.wandb=disabled",
]
USED = ("dpldm_celebahq_text", "dpsapf_sd15", "timedit_smartmeter")
"""One of a kind, which is tested; samples are drawn afterwards, and judged where they are images."""


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    return vgg_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to be in, with made-up files in data/, as recipes look for files and earlier stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_DP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(ett, "_CHECKSUMS", dict(ett._CHECKSUMS))
    monkeypatch.setattr(preflight, "inspect_step", _only_followed)
    (tmp_path / "data").mkdir()
    return tmp_path


def _only_followed(trial):
    learn_layout(trial)
    return find_unfollowed(trial)


def _fits(system: str, place: Path, vgg: Path) -> dict[str, list[str]]:
    """The options of each recipe's fit, in their order."""
    if system in RECIPES:
        recipe = RECIPES[system]
        under = [f"--config={CONF / name}" for name in recipe.configs]
        small = [*under, f"--config={PAPERS / system}.yaml", *SMALL, *recipe.files(place / "data")]
        return {system: [*small, *recipe.toy, *PRIVATE, "--privacy.delta=1e-4", "--privacy.spot_check=0"]}
    overrides = MAKE[system.removeprefix("dpldm_")](place, vgg)
    found = {}
    for stage, small in overrides.items():
        more = [*PRIVATE, "--privacy.spot_check=0"] if stage == "" else []
        found[system + stage] = [f"--config={PAPERS / system}{stage}.yaml", *SMALL, *small, *more]
    return found


def test_every_recipe_of_a_paper_runs_here():
    assert sorted(name for names in SYSTEMS.values() for name in names) == sorted(
        path.stem for path in PAPERS.glob("*.yaml")
    )


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_a_paper_mixes_no_devices(system, place, vgg):
    fits = _fits(system, place, vgg)
    assert [*fits] == SYSTEMS[system]
    for name, options in fits.items():
        run = Path("runs") / name
        with fake_device() as seen:
            tested = f"--run.test={str(name in USED).lower()}"
            assert main(["fit", *options, *HERE, tested, f"--run.dir={run}"]) == 0
        assert not seen.mixed, name
        assert seen.kernels.total() > 100
        assert (run / "checkpoints" / "last.ckpt").exists()
    if system not in USED:
        return
    output = "windows.csv" if system.startswith("timedit") else "pictures"
    with fake_device() as seen:
        assert main(["sample", str(run), "--num=2", f"--output={output}"]) == 0
        if output == "pictures":
            assert main(["evaluate", str(run), "--parts", "memorisation", "--samples", "8"]) == 0
    assert not seen.mixed
