"""A wrong configuration is answered by file, line, what was expected and the nearest valid key."""

import re
from pathlib import Path

import pytest

from lightning_dp.cli import main

RECIPE = Path(__file__).parents[2] / "conf" / "experiment" / "demo_simulator.yaml"

IN_FILES = {
    "trainer:\n  max_steps: 3\n   accelerator: cpu\n": "own.yaml, line 3, column 15: no YAML: mapping values",
    "trainer:\n\tmax_steps: 3\n": "own.yaml, line 2, column 1: no YAML: .* indent by blanks, not by tabs",
    "": "own.yaml is empty; a configuration is keys with values",
    "- a\n- b\n": "own.yaml holds a list",
    "run:\n  dir: Müller\n": "own.yaml, line 2: it is not UTF-8",
    "trainer:\n  max_steps: 3\n  max_steps: 4\n": "max_steps is set a second time .first in line 2",
    "privcy:\n  delta: 1e-5\n": "line 2: there is no 'privcy' in a configuration; did you mean privacy",
    "trainer:\n  max_step: 3\n": "line 2: trainer has no argument 'max_step'; did you mean max_steps",
    "privacy:\n  target_eps: 3\n": "line 2: .* mean target_epsilon",
    "model:\n  init_args:\n    net:\n      init_args:\n        hiden_size: 3\n": "line 5: .* hidden_size",
    "trainer:\n  max_steps: many\n": "line 2: trainer.max_steps is many, but it must be a whole number",
    "data:\n  init_args:\n    num_households: many\n": "line 3: data.num_households is many, but it must be",
    "data:\n  init_args:\n    num_households: null\n": "line 3: HouseholdLoad.num_households is null",
    "privacy:\n  delta: small\n": "line 2: privacy.delta is small, but it must be a number",
    "model:\n  init_args:\n    net:\n      class_path: lightning_dp.nets.SeriesDitt\n": "line 3: .*SeriesDiT",
    "data:\n  class_path: mypackage.MyData\n": "line 1: data: there is no module mypackage here",
}


@pytest.mark.parametrize("text", IN_FILES, ids=range(len(IN_FILES)))
def test_a_mistake_in_a_file_is_found_where_it_stands(text, tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert main(["fit", f"--config={RECIPE}", f"--config={path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightning-dp fit: ")
    assert error.count("\n") == 1
    assert "unchecked" not in error
    pattern = IN_FILES[text]

    assert re.search(pattern, error), error


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "--trainer.max_step=3",
            "--trainer.max_step: trainer has no argument 'max_step'; did you mean max_steps",
        ),
        ("--data=HouseholdLod", "Did you mean HouseholdLoad?"),
        ("--config=nowhere.yaml", "--config nowhere.yaml: there is no such file"),
        ("--data.init_args.num_days=null", "--data.init_args.num_days: HouseholdLoad.num_days is null"),
    ],
)
def test_a_mistake_on_the_command_line_names_its_option(option, sentence, capsys):
    assert main(["fit", f"--config={RECIPE}", option]) == 2
    assert sentence in capsys.readouterr().err


NULLABLE = (
    "model.init_args.min_snr_gamma",
    "model.min_snr_gamma",
    "privacy.physical_batch_size",
    "model.bounds",
)


def test_optional_values_may_be_null_on_the_command_line(tmp_path):
    from lightning_dp.lightning_cli import instantiate_fit

    given = [f"--config={RECIPE}"]
    for name in NULLABLE:
        given += [f"--{name}", "null", f"--{name}=None"]
    cli = instantiate_fit(given)
    assert cli.model.min_snr_gamma is None
    assert cli.config_init["fit"].privacy.physical_batch_size is None


def test_a_single_callback_needs_no_list(tmp_path):
    from lightning_dp.lightning_cli import instantiate_fit

    path = tmp_path / "own.yaml"
    path.write_text(
        "trainer:\n  callbacks:\n    class_path: lightning.pytorch.callbacks.LearningRateMonitor\n"
    )
    cli = instantiate_fit([f"--config={RECIPE}", f"--config={path}"])
    assert type(cli.trainer.callbacks[0]).__name__ == "LearningRateMonitor"
