"""No trial is charged for a metric that it won't log, and what parts promise to log, they log."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from images.image_support import CLASSES, pictures
from lightning.pytorch import LightningModule

from lightning_dp.commands.sweep import main
from lightning_dp.lightning_cli import instantiate, run
from lightning_dp.sweeps.metric import metrics_of_fit
from lightning_dp.timeseries.masks import Synthesis
from lightning_dp.tracking.logged_metrics import LoggedMetrics, metrics_of_module

ROOT = Path(__file__).parents[2]
SMOKE = yaml.safe_load((ROOT / "sweeps" / "smoke.yaml").read_text())
ONE = ["--override=seed_everything=0", "--override=config=conf/model/dit_vanilla.yaml"]


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Writes sweeps/smoke.yaml with other content; returns options of a command on it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "ledger.sqlite"))

    def changed_(**content: object) -> list[str]:
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump({**SMOKE, **content}))
        return [str(tmp_path / "changed.yaml"), f"--out={tmp_path / 'out'}", *ONE]

    return changed_


@pytest.mark.parametrize("command", [["check"], ["run"], ["launch", "--cluster=local"]], ids=lambda c: c[0])
def test_a_metric_that_nothing_logs_is_named_before_a_charge(changed, tmp_path, command):
    options = changed(metric={"name": "test/msee", "goal": "minimize"})
    with pytest.raises(ValueError, match="'test/msee', which no trial of TimeSeriesDiffusion logs") as found:
        main([command[0], *options, *command[1:]])
    assert "the nearest is 'test/mse' of " in str(found.value)
    assert "test/crps, test/epsilon, test/mae" in str(found.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed.yaml"]  # no trial, no ledger


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        ("test/mse", "run", "test", False),
        ("test/mse", "trainer", "limit_test_batches", 0),
        ("nonprivate/val_mse", "trainer", "limit_val_batches", 0),
        ("nonprivate/train_loss", "trainer", "log_every_n_steps", 401),  # of 400
        ("privacy/epsilon", "trainer", "logger", False),
    ],
)
def test_what_a_trial_is_told_not_to_log_is_not_logged(whole, name, part, key, value):
    module, data, config = whole
    told = config.clone()
    told[part] = replace(config.run, **{key: value}) if part == "run" else told[part]
    if part == "trainer":
        told[part][key] = value
    for given, expected in ((config, True), (told, False)):
        said = metrics_of_fit(module=module, data=data, config=given)
        assert (name in said.train | said.validation | said.test) == expected


@pytest.fixture(scope="module")
def whole():
    """Module, data and configuration of a fit that logs all there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        options = ["--trainer.max_steps=400", "--trainer.limit_val_batches=1", "--run.test=true"]
        cli = instantiate(["fit", "--config=conf/experiment/demo_simulator.yaml", *options])
    return cli.model, cli.datamodule, cli.config_init["fit"]


def test_a_synthesis_has_other_scores(whole):
    module, data, config = whole
    said = metrics_of_fit(module=module, data=data, config=config).test
    assert {"baseline/mean_of_days/mse", "test/mse"} <= said
    assert "test/marginal_distance" not in said
    data.task = Synthesis()
    said = metrics_of_fit(module=module, data=data, config=config).test
    assert {"test/marginal_distance", "test/predictive_score", "test/mse"} <= said
    assert "baseline/mean_of_days/mse" not in said
    data.task = None


def test_trials_are_stopped_early_only_by_what_is_logged_early(changed):
    early: dict = {"early_terminate": {"type": "hyperband", "min_iter": 1}}
    with pytest.raises(ValueError, match="logs at its end only, so early_terminate would never stop one"):
        main(["check", *changed(**early)])
    early |= {"metric": {"name": "nonprivate/train_loss", "goal": "minimize"}}
    assert main(["check", *changed(**early)]) == 0


def test_an_evolution_is_known_too(changed):
    evolve: dict = {"command": ["${interpreter}", "-m", "lightning_dp", "evolve", "${args}"]}
    with pytest.raises(ValueError, match="no trial of lightning-dp evolve logs"):
        main(["check", *changed(**evolve)])
    evolve |= {"metric": {"name": "evolution/survivors", "goal": "maximize"}}
    assert main(["check", *changed(**evolve)]) == 0


def test_a_module_has_to_say(tmp_path):
    class Silent(LightningModule):
        pass

    class Honest(LightningModule):
        def logged_metrics(self, data: object) -> LoggedMetrics:
            return LoggedMetrics(train=frozenset({"loss", "nonprivate/x"}), test=frozenset({"test/own"}))

    with pytest.raises(ValueError, match="Silent does not say what it logs"):
        metrics_of_module(Silent(), data=None)
    said = metrics_of_module(Honest(), data=None)
    assert said.kept_private().train == {"nonprivate/loss", "nonprivate/x"}
    assert said.kept_private().test == {"test/own"}


def test_promises_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = [
        "fit",
        "--config=conf/experiment/demo_simulator.yaml",
        "--config=conf/controls/diagnostics.yaml",
        "--privacy.target_epsilon=null",
        "--privacy.noise_multiplier=1",
        "--privacy.expected_batch_size=20",
        "--data.init_args.num_households=40",
        "--data.init_args.num_days=9",
        "--model.init_args.net.init_args.hidden_size=8",
        "--model.init_args.num_samples=2",
        "--trainer.max_steps=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=2",
        "--trainer.enable_progress_bar=false",
        f"--run.dir={tmp_path / 'run'}",
        "--run.wandb=disabled",
    ]
    cli = instantiate(arguments)
    said = metrics_of_fit(module=cli.model, data=cli.datamodule, config=cli.config_init["fit"])
    run(arguments)
    _check_promises(tmp_path / "run", said)


def _check_promises(folder: Path, said: LoggedMetrics) -> None:
    results = json.loads((folder / "results.json").read_text())["metrics"]
    assert said.test <= set(results)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert said.train | said.validation <= {name for row in rows for name, value in row.items() if value}


def test_saliency_ratio_ends_with_its_metric(tmp_path, monkeypatch):
    """The project's sweep as it is, on a few small images, with a public stage that was never trained."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "ledger.sqlite"))
    for split, count in (("train", 60), ("test", 30)):
        images, labels = pictures(count, size=28)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    recipe = yaml.safe_load(Path("conf/experiment/fashion_mnist.yaml").read_text())
    recipe["data"]["init_args"]["source"] = {
        "class_path": "lightning_dp.images.data.npz.NPZ",
        "init_args": {"path": str(tmp_path), "class_names": CLASSES},
    }
    recipe["model"]["init_args"]["net"]["init_args"] |= {"hidden_size": 16}
    del recipe["model"]["init_args"]["base_denoiser"]  # a share of a target
    recipe["trainer"]["callbacks"] = recipe["trainer"]["callbacks"][:1]  # else it starts from another run
    recipe["trainer"] |= {"max_steps": 1, "enable_progress_bar": False}
    judged = yaml.safe_load(Path("conf/evaluation/cnn.yaml").read_text())
    judged["trainer"]["callbacks+"][0]["init_args"] |= {"num_samples": 100, "epochs": 1}
    small = {"fashion_mnist.yaml": recipe, "cnn.yaml": judged}
    for name, content in small.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    sweep = yaml.safe_load(Path("sweeps/saliency_ratio.yaml").read_text())
    command = [
        f"--config={tmp_path / Path(part).name}" if part.startswith("--config=") else part
        for part in sweep["command"]
    ]
    assert sum(part.startswith("--config=") for part in command) == len(small)
    noise = ["--privacy.noise_multiplier=4", "--model.init_args.adapter.init_args.noise_multiplier=3"]
    sizes = ["--privacy.delta=1e-2", "--privacy.expected_batch_size=8", "--run.wandb=disabled"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**sweep, "command": [*command, *noise, *sizes]}))
    ours = ["--override=seed_everything=0", "--override=privacy.target_epsilon=null"]
    ours += ["--override=model.init_args.adapter.init_args.ratio=0.3"]
    assert main(["run", str(tmp_path / "toy.yaml"), f"--out={tmp_path / 'out'}", *ours]) == 0
    (results,) = (tmp_path / "out").rglob("results.json")
    metrics = json.loads(results.read_text())["metrics"]
    assert {"test/loss", "test/epsilon", "test/accuracy_cnn"} <= set(metrics)
    assert 0 <= metrics["test/accuracy_cnn"] <= 100
