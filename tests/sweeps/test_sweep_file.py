"""Sweep files are read as W&B reads them, and a trial's command is the one its agent would give it."""

import json
from pathlib import Path

import optuna
import pytest
import yaml
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from lightning_dp.lightning_cli import instantiate
from lightning_dp.sweeps.command import build_command, fit_arguments
from lightning_dp.sweeps.parameters import Range, assemble, read_parameters
from lightning_dp.sweeps.sweep import EarlyTermination, Metric, Sweep, read_sweep
from lightning_dp.sweeps.yaml_text import yaml_text

BASE = {"method": "grid", "parameters": {"x": {"values": [1, 2]}}, "command": ["run", "${args}"]}


def sweep_of(tmp_path: Path, **changes: object) -> Sweep:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return read_sweep(path)


def test_a_file_is_read(tmp_path):
    sweep = sweep_of(
        tmp_path,
        metric={"name": "test/mse"},
        run_cap=3,
        early_terminate={"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3},
    )
    assert sweep.name == "one"
    assert sweep.metric == Metric(name="test/mse", goal="minimize")
    assert sweep.early_terminate == EarlyTermination(min_iter=3, eta=3)
    assert [assemble(point) for point in sweep.points()] == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metod": "grid"}, "has metod; a sweep knows"),
        ({"method": "hyperopt"}, "method is 'hyperopt'"),
        ({"method": "bayes"}, "need a metric"),
        ({"metric": {"name": "x", "goal": "best"}}, "metric.goal is 'best'"),
        ({"early_terminate": {"type": "median"}}, "must be hyperband"),
        ({"metric": {"name": "x"}, "early_terminate": {"type": "hyperband", "max_iter": 2, "s": 2}}, "eta"),
        ({"run_cap": 0}, "run_cap is 0"),
        ({"command": ["run", "${arg}"]}, r"command has \$\{arg\}"),
        ({"command": None}, "neither command nor program"),
        ({"parameters": {"x": 3}}, "parameters.x is 3"),
        ({"parameters": {"x": {"values": []}}}, "at least one value"),
        ({"parameters": {"x": {"values": [1], "probabilities": [1]}}}, "has probabilities beside"),
        ({"parameters": {"x": {"min": 1, "max": 2}}}, "is a range; a grid needs"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "min < max"),
        ({"parameters": {"x": {"min": 1, "max": 2.5}}}, "one whole and one broken"),
        ({"parameters": {"x": {"distribution": "beta", "min": 0.1, "max": 1.0}}}, "distribution is 'beta'"),
        ({"parameters": {"trainer.limit_val_batches": {"values": [1.0]}}}, "one batch instead of all"),
    ],
)
def test_what_wandb_would_not_understand_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        sweep_of(tmp_path, **changes)


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't be read"):
        read_sweep(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ValueError, match="is no sweep"):
        read_sweep(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"min": 1, "max": 8}, Range(low=1, high=8)),
        ({"min": 0.5, "max": 1.5}, Range(low=0.5, high=1.5)),
        ({"min": 0, "max": 1, "q": 0.25, "distribution": "q_uniform"}, Range(low=0.0, high=1.0, step=0.25)),
        ({"min": 0.01, "max": 1, "distribution": "log_uniform_values"}, Range(low=0.01, high=1.0, log=True)),
        (
            {"min": 0, "max": 1, "distribution": "log_uniform"},
            Range(low=1.0, high=2.718281828459045, log=True),
        ),
    ],
)
def test_ranges_are_those_of_wandb(described, expected):
    (leaf,) = read_parameters({"x": described}).values()
    assert leaf == expected
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [leaf.draw(study.ask(), "x") for _ in range(20)]
    assert all(leaf.low <= value <= leaf.high for value in drawn)
    assert len(set(drawn)) > 3


def test_nested_parameters_become_one_dictionary_and_whole_floats_integers():
    leaves = read_parameters(
        {
            "privacy": {"parameters": {"target_epsilon": {"values": [1.0, 8.0]}, "delta": {"value": 1e-5}}},
            "seed": {"value": 0},
        }
    )
    point = {path: leaf.extremes()[0] for path, leaf in leaves.items()}
    sent = assemble(point)
    assert sent == {"privacy": {"target_epsilon": 1, "delta": 1e-5}, "seed": 0}
    assert json.dumps(sent) == '{"privacy": {"target_epsilon": 1, "delta": 1e-05}, "seed": 0}'


def test_overrides_fix_a_parameter_or_give_it_other_values(tmp_path):
    sweep = sweep_of(tmp_path, parameters={"x": {"values": [1, 2]}, "y": {"value": [0, 1]}})
    changed = sweep.with_overrides({"x": [3, 4, 5], "trainer.max_steps": 4, "tags": ["a"]})
    points = [assemble(point) for point in changed.points()]
    assert [point["x"] for point in points] == [3, 4, 5]
    assert points[0] == {"x": 3, "y": [0, 1], "trainer.max_steps": 4, "tags": ["a"]}
    assert changed.fingerprint() != sweep.fingerprint()


MACROS = ["args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_json"]


@pytest.mark.parametrize("macro", MACROS)
def test_the_command_is_the_agents(tmp_path, monkeypatch, macro):
    monkeypatch.setenv("STEPS", "7")
    command = [
        "${env}",
        "${interpreter}",
        "-m",
        "lightning_dp",
        "fit",
        "--n=${envvar:STEPS}",
        f"${{{macro}}}",
    ]
    sweep = sweep_of(tmp_path, command=command)
    values = {"privacy": None, "rate": 1e-05, "deep": {"a": None, "b": [True, 1]}, "on": True, "off": False}
    built = build_command(sweep, values)
    sent = wandb_sweeps.create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    assert [built[0], *built[2:5]] == ["/usr/bin/env", "-m", "lightning_dp", "fit"]
    assert [built[5], *sent[macro]] == [*wandb_sweeps.create_sweep_command(command[5:6]), *built[6:]]
    assert fit_arguments(built) == ["fit", "--n=7", *sent[macro]]


def test_trials_of_another_program_are_known_as_such():
    assert fit_arguments(["/bin/lightning-dp", "fit", "--a=1"]) == ["fit", "--a=1"]
    assert fit_arguments(["python", "train.py", "fit"]) is None
    assert fit_arguments(["python", "-m", "lightning_dp", "test"]) is None


@pytest.mark.parametrize(
    ("printed", "read"),
    [
        ("--privacy=None", None),
        ("--x=inf", float("inf")),
        ("--x=-inf", -float("inf")),
        ("--x=[0.0, inf]", [0.0, float("inf")]),
        ("--x={'a': None, 'b': [True, 'c'], 'd': -inf}", {"a": None, "b": [True, "c"], "d": -float("inf")}),
        ("--x=[dp, tiny]", ["dp", "tiny"]),
        ("--x={a: 1}", {"a": 1}),
        ("--x=lightning_dp.None", "lightning_dp.None"),
        ("--x=1", 1),
        ("--x=", None),
    ],
)
def test_values_as_python_prints_them_are_read(printed, read):
    assert yaml.safe_load(yaml_text(printed).partition("=")[2]) == read


def test_arguments_without_a_value_stay():
    assert yaml_text("None") == "None"
    assert yaml_text("fit") == "fit"


def test_the_parser_reads_what_an_agent_sends(monkeypatch):
    """Every value here is refused or misread without the respelling."""
    monkeypatch.chdir(Path(__file__).parents[2])
    base = ["fit", "--config=conf/experiment/demo_simulator.yaml"]
    cli = instantiate(
        [
            *base,
            "--privacy=None",
            "--model.init_args.bounds=[0.0, inf]",
            "--model.init_args.min_snr_gamma=None",
        ]
    )
    config = cli.config_init["fit"]
    assert config.privacy is None
    assert cli.model.bounds == (0.0, float("inf"))
    assert cli.model.min_snr_gamma is None
    nested = "{'target_epsilon': 1, 'delta': 1e-05, 'expected_batch_size': 64, 'noise_multiplier': None}"
    config = instantiate([*base, f"--privacy={nested}"]).config_init["fit"]
    assert (config.privacy.target_epsilon, config.privacy.delta) == (1.0, 1e-5)
    assert config.privacy.noise_multiplier is None
