"""References between fields of a configuration follow what the command line says last, or are refused."""

from pathlib import Path

import pytest
import yaml

from lightning_dp import interpolation
from lightning_dp.cli import main
from lightning_dp.lightning_cli import instantiate, instantiate_untrained

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "conf" / "experiment" / "demo_simulator.yaml"
REFERENCES = """
model:
  init_args:
    num_samples: ${oc.env:NUM_SAMPLES,3}
    lr_scheduler:
      class_path: torch.optim.lr_scheduler.CosineAnnealingLR
      init_args:
        T_max: ${trainer.max_steps}
        eta_min: ${model.init_args.optimizer.init_args.weight_decay}
privacy:
  expected_batch_size: ${data.init_args.batch_size}
run:
  method: steps-${trainer.max_steps}
"""


@pytest.fixture
def options(tmp_path):
    file = tmp_path / "references.yaml"
    file.write_text(REFERENCES)
    return [f"--config={SMALL}", f"--config={file}", "--run.wandb=disabled"]


def settings(*options: str) -> dict:
    return yaml.safe_load(instantiate_untrained([*options])[1])


def test_references_follow_the_command_line(options):
    found = settings(*options, "--trainer.max_steps=7", "--data.init_args.batch_size=11")
    scheduler = found["model"]["init_args"]["lr_scheduler"]["init_args"]
    assert scheduler["T_max"] == 7
    assert scheduler["eta_min"] == found["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"]
    assert found["privacy"]["expected_batch_size"] == 11
    assert found["run"]["method"] == "steps-7"
    assert found["model"]["init_args"]["num_samples"] == 3


def test_environment_and_command_line_may_hold_references(options, monkeypatch):
    monkeypatch.setenv("NUM_SAMPLES", "5")
    found = settings(
        *options,
        "--trainer.max_steps=${data.init_args.batch_size}",
        "--trainer.log_every_n_steps=${.max_steps}",
    )
    assert found["model"]["init_args"]["num_samples"] == 5
    batch = found["data"]["init_args"]["batch_size"]
    assert found["trainer"]["max_steps"] == found["trainer"]["log_every_n_steps"] == batch
    whole = settings(
        *options,
        "--model.init_args.optimizer={class_path: torch.optim.SGD, "
        "init_args: {lr: '${data.init_args.batch_size}'}}",
    )
    assert whole["model"]["init_args"]["optimizer"]["init_args"]["lr"] == batch


def test_a_value_that_is_no_yaml_is_a_word(options):
    found = settings(*options, "--run.method=75 %: @all {", "--run.group=%one")
    assert (found["run"]["method"], found["run"]["group"]) == ("75 %: @all {", "%one")


def test_what_the_data_knows_still_reaches_the_net(options):
    """Resolving drops places that links fill in later: the net has the data's length all the same."""
    cli = instantiate(["fit", *options])
    assert cli.model.net.length == cli.datamodule.length


def test_a_whole_fit_saves_what_references_came_to(options, tmp_path):
    folder = tmp_path / "run"
    small = ["--trainer.max_steps=2", "--data.init_args.num_households=60", "--data.init_args.num_days=12"]
    small += ["--data.init_args.batch_size=12", "--privacy.delta=1e-3", "--run.test=false"]
    small += ["--trainer.enable_progress_bar=false"]
    assert main(["fit", *options, *small, f"--run.dir={folder}"]) == 0
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["lr_scheduler"]["init_args"]["T_max"] == 2
    assert saved["privacy"]["expected_batch_size"] == 12
    assert "${" not in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "--trainer.max_steps=${trainer.max_step}",
            "trainer.max_steps: Interpolation key 'trainer.max_step' not found",
        ),
        ("--run.method=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
        ("--trainer.max_steps=${trainer.max_steps}", "trainer.max_steps: "),  # of itself
        ("--run.method=${nothing:1}", "run.method: Unsupported interpolation type nothing"),
        ("--run.method=${run.", "run.method: "),
        ("--trainer.max_steps=${run.method}", "max_steps"),  # a word where a number must be
    ],
)
def test_a_reference_that_leads_nowhere_is_refused_in_a_sentence(options, tmp_path, capsys, option, says):
    folder = tmp_path / "never"
    assert main(["fit", *options, option, f"--run.dir={folder}"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert "fit.trainer" not in said.replace("lightning-dp fit", "")
    assert not folder.exists()


def test_names_are_lengthened_once_and_resolvers_left_alone():
    once = interpolation.lengthen({"a": ["${b.c}", "${..d}", "${oc.env:E}", "${fit.b}", 3]}, subcommand="fit")
    assert once == {"a": ["${fit.b.c}", "${..d}", "${oc.env:E}", "${fit.b}", 3]}
    assert interpolation.lengthen(once, subcommand="fit") == once
