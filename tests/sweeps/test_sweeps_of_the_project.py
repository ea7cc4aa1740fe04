"""Every YAML under sweeps/: its head says what it is for, and each of its values makes a configuration
whose fit logs what the sweep judges by."""

import importlib
import os
from pathlib import Path

import pytest

from lightning_dp.lightning_cli import instantiate
from lightning_dp.sweeps.command import build_command, fit_arguments
from lightning_dp.sweeps.metric import check_metric, metrics_of_fit
from lightning_dp.sweeps.parameters import assemble
from lightning_dp.sweeps.sweep import read_sweep

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("sweeps/**/*.yaml"))
# DP-LDM's trials start from earlier stages, which papers/test_dpldm.py makes before it looks at all values.
WITHOUT_STAGES = [path for path in FILES if not path.stem.startswith("dpldm")]


def test_they_are_there():
    assert {"smoke", "vanilla_vs_dp_aware", "saliency_ratio", "clip_norm", "bounds"} <= {
        path.stem for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_explains_itself_and_compares_fairly(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("lightning-dp sweep run" in line for line in head)
    sweep = read_sweep(path)
    assert sweep.metric is not None
    points = [assemble(point) for point in sweep.points()]
    assert f"{len(points)} private" in " ".join(head) or path.stem == "smoke"
    # Each combination once with every seed: what is compared differs in nothing else.
    seeds = {point["seed_everything"] for point in points}
    others = [tuple(sorted((k, str(v)) for k, v in p.items() if k != "seed_everything")) for p in points]
    assert len(points) == len(seeds) * len(set(others))
    assert all(others.count(other) == len(seeds) for other in set(others))


@pytest.mark.parametrize("path", WITHOUT_STAGES, ids=lambda path: path.stem)
def test_every_value_of_a_sweep_makes_a_configuration(path, monkeypatch):
    """Each value of each parameter once; parameters are read independently of each other."""
    if any(name in path.read_text().lower() for name in ("etth1", "smartmeter")) and not os.environ.get(
        "LIGHTNING_DP_DATA"
    ):
        pytest.skip("needs the ETT and smart-meter data: set LIGHTNING_DP_DATA")
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(path)
    points = [assemble(point) for point in sweep.points()]
    for part in (part for part in sweep.command if part.startswith("--config=")):
        assert (ROOT / part.removeprefix("--config=")).is_file(), part
    _skip_without_parts(sweep.command)
    unseen = {(name, str(value)) for point in points for name, value in point.items()}
    while unseen:
        best = max(points, key=lambda point: len(unseen & {(k, str(v)) for k, v in point.items()}))
        arguments = fit_arguments(build_command(sweep, best))
        assert arguments is not None
        cli = instantiate(arguments)
        config = cli.config_init["fit"]
        logged = metrics_of_fit(module=cli.model, data=cli.datamodule, config=config)
        check_metric(sweep, logged=logged, program="it")
        assert config.privacy is not None  # each is said to be private
        unseen -= {(name, str(value)) for name, value in best.items()}


def _skip_without_parts(command: tuple[str, ...]) -> None:
    """Until every class that a command names is written, its sweep can't be made."""
    for part in command:
        value = part.partition("=")[2]
        if value.startswith("lightning_dp."):
            module, _, name = value.rpartition(".")
            try:
                getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError):
                pytest.skip(f"{value} is not there yet")
