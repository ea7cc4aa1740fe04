"""DP-LDM's recipes from the autoencoder to the report, on made-up files of the true forms."""

import json
from pathlib import Path

import dpldm_toys as toys
import pytest
import torch
import yaml
from dpldm_recipes import MAKE, STAGES

from lightning_dp.cli import main
from lightning_dp.data_files import data_folder
from lightning_dp.images.run import load_module
from lightning_dp.lightning_cli import instantiate
from lightning_dp.sweeps.command import build_command, fit_arguments
from lightning_dp.sweeps.parameters import assemble
from lightning_dp.sweeps.sweep import read_sweep

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "conf" / "experiment" / "papers"
SWEEPS = sorted((ROOT / "sweeps" / "papers").glob("dpldm_*.yaml"))
SEEDS = [0, 1, 2]
FITTED = {"dpldm_blocks": -4, "dpldm_fresh": -1}  # residual blocks alone, fresh attention
ALL = sorted(path.stem for path in PAPERS.glob("dpldm_*.yaml"))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    return toys.vgg_file(tmp_path_factory.mktemp("weights"))


EVALUATE = {
    "mnist": ["--parts", "cnn", "mlp", "--samples", "100", "--epochs", "1"],
    "cifar10": ["--parts", "cnn", "--samples", "100", "--epochs", "1"],
    "celeba64": ["--parts", "distances", "--samples", "50", "--distance-samples", "50"],
    "celebahq_text": ["--parts", "memorisation", "--samples", "50"],
}


def test_every_recipe_is_a_stage_that_is_run_here():
    assert sorted(f"dpldm_{name}{stage}" for name in MAKE for stage in STAGES) == ALL


@pytest.mark.parametrize("name", sorted(MAKE))
def test_all_stages_run_as_printed_to_the_report(name, vgg, tmp_path, monkeypatch, capsys):
    """In a folder of its own, with `runs/…` as the recipes have it: each stage finds the one before."""
    monkeypatch.chdir(tmp_path)
    weights = data_folder(None).absolute() / "weights"  # of what compares images, where that is at hand
    monkeypatch.setenv("LIGHTNING_DP_DATA", str(tmp_path / "data"))
    small = MAKE[name](tmp_path, vgg)
    if weights.is_dir():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "weights").symlink_to(weights)
    for stage in STAGES:
        config = PAPERS / f"dpldm_{name}{stage}.yaml"
        assert f"--run.dir runs/dpldm_{name}{stage}" in config.read_text()
        private = toys.PRIVATE if stage == "" else ("--run.test=false",)  # a stage on the way is not judged
        options = [*toys.SMALL, *small[stage], *private, f"--run.dir=runs/dpldm_{name}{stage}"]
        assert main(["fit", f"--config={config}", *options]) == 0, stage
    _what_the_last_stage_needs_is_printed(config, options[:-1], capsys)
    run = Path("runs") / f"dpldm_{name}"
    engine = yaml.safe_load((run / "config.yaml").read_text())["privacy"]["clipping_engine"]
    assert engine is None or engine["class_path"].endswith(".BookKeeping")  # the default
    assert 0 < json.loads((run / "privacy.json").read_text())["epsilon_spent"] < float("inf")
    _only_attention_and_embedder_moved(run)
    judged = EVALUATE[name]
    if "distances" in judged and not weights.is_dir():
        judged = ["--parts", "memorisation", "--samples", "50"]
    before = _scores(run)
    assert main(["evaluate", str(run), *judged]) == 0
    assert _scores(run).keys() > before.keys()
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "DP-LDM" in capsys.readouterr().out
    if name == "cifar10":
        for path in SWEEPS:
            own = small[""] if path.stem == "dpldm_fresh" else small[""][:-1]  # the last are blocks
            _a_sweep_makes_and_runs_its_trials(path, own)


def _what_the_last_stage_needs_is_printed(config: Path, options: list[str], capsys) -> None:
    capsys.readouterr()
    assert main(["check", str(config), "--needs", *options]) == 0
    said = capsys.readouterr().out
    for what in ("time     about", "memory   about", "weights  "):
        assert what in said
    data = [line for line in said.splitlines() if line.startswith("data     ")]
    assert data
    assert all(line.endswith(" MiB") for line in data), data  # each is there, and its size is known


def _a_sweep_makes_and_runs_its_trials(path: Path, small: list[str]) -> None:
    """Each value of a sweep makes a configuration; one is fitted, and logs what trials are judged by."""
    sweep = read_sweep(path)
    commands = [fit_arguments(build_command(sweep, assemble(point))) for point in sweep.points()]
    trials = [
        [part.replace("--config=conf", f"--config={ROOT}/conf") for part in own or []] for own in commands
    ]
    whole = toys.cross_attention([4, 4, 4, 4], attention=[True, True, True, False], size=16)
    layers = "--model.init_args.net.init_args.layers_per_block=2"
    for trial in trials[:: len(SEEDS)]:  # the 16 blocks that it names
        assert instantiate([*trial, *whole, layers]).config_init["fit"].privacy is not None
    run = Path("runs") / path.stem
    chosen = trials[FITTED[path.stem]]
    assert main([*chosen, *toys.SMALL, *small, *toys.PRIVATE, f"--run.dir={run}"]) == 0
    assert sweep.metric is not None
    results = json.loads((run / "results.json").read_text())
    assert sweep.metric.name in results["metrics"]
    if path.stem == "dpldm_fresh":
        assert results["method"] == "DP-LDM, fresh attention"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_says_what_it_is_for_and_compares_fairly(path):
    head = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    points = [assemble(point) for point in read_sweep(path).points()]
    assert f"{len(points)} private trials" in head
    assert "lightning-dp sweep run" in head
    assert [point["seed_everything"] for point in points] == SEEDS * (len(points) // len(SEEDS))


def _scores(run: Path) -> dict[str, float]:
    return json.loads((run / "results.json").read_text())["metrics"]


def _only_attention_and_embedder_moved(run: Path) -> None:
    before = load_module(Path(f"{run}_public")).state_dict()
    after = load_module(run).state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".attentions." in name or name.startswith(("net.label.", "net.text.")) for name in moved)
