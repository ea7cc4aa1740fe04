"""Every control under conf/controls, laid over a whole recipe, trains for two steps and does what it says."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_dp.callbacks.gradient_diagnostics import GradientDiagnostics
from lightning_dp.cli import main
from lightning_dp.lightning_cli import Cli, run
from lightning_dp.nets.conditioning.bounds import ClampSTE, HardClamp, SoftClampBand, Tanh
from lightning_dp.nets.conditioning.modulation import ConditionProjection, Modulation
from lightning_dp.nets.conditioning.path import condition_parameters
from lightning_dp.privacy.clipping.functions import PerGroup

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "conf" / "experiment" / "demo_simulator.yaml"
CONTROLS = {path.stem: path for path in sorted((ROOT / "conf" / "controls").glob("*.yaml"))}
OPERATORS = {"tanh": Tanh, "soft_clamp_band": SoftClampBand, "hard_clamp": HardClamp, "clamp_ste": ClampSTE}
# Given rather than calibrated, which would take longer than all else.
SIGMA = ["--privacy.expected_batch_size=4", "--privacy.target_epsilon=null", "--privacy.noise_multiplier=1"]
TIGHTNESS = {"loose": 1.0, "medium": 0.9, "tight": 0.75, "too_tight": 0.5}


def _fit(name: str, folder: Path, *more: str) -> Cli:
    return run(
        [
            "fit",
            f"--config={RECIPE}",
            f"--config={CONTROLS[name]}",
            f"--run.dir={folder}",
            "--run.test=false",
            "--run.wandb=disabled",
            "--trainer.max_steps=2",
            "--trainer.enable_progress_bar=false",
            "--data.init_args.num_households=20",
            "--data.init_args.num_days=6",
            "--data.init_args.batch_size=4",
            *(more or ["--privacy=null"]),
        ]
    )


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_trains(name, tmp_path):
    # Without the cost of accounting where a control has nothing to do with privacy.
    private = name in ("partitioned_clipping", "diagnostics")
    cli = _fit(name, tmp_path / "run", *(SIGMA if private else []))
    assert cli.trainer.global_step == 2
    modulation = cli.model.net.blocks[0].modulation
    assert isinstance(modulation, Modulation)
    bounds = (modulation.scale_bound, modulation.shift_bound, modulation.gate_bound)
    bounded = [hasattr(bound, "limit") for bound in bounds]
    projected = isinstance(modulation.project, ConditionProjection)
    kind, _, choice = name.partition("_")
    if kind == "operator":
        assert all(type(bound) is OPERATORS[choice] for bound in bounds)
        assert projected
    elif name == "smartmeter_medium":
        assert projected
        assert modulation.project.max_norm == pytest.approx(0.9 * 4.12)
        assert [bound.limit for bound in bounds] == pytest.approx([0.9 * 0.91, 0.9 * 0.43, 0.9 * 0.66])
    elif kind == "tightness":
        loose = yaml.safe_load(CONTROLS["tightness_loose"].read_text())
        limits = loose["model"]["init_args"]["net"]["init_args"]["conditioning"]["init_args"]
        assert modulation.project.max_norm == pytest.approx(TIGHTNESS[choice] * limits["c_max"])
        for bound, limit in zip(bounds, ("gamma_max", "beta_max", "alpha_max"), strict=True):
            assert bound.limit == pytest.approx(TIGHTNESS[choice] * limits[limit])
    elif name in ("vanilla", "partitioned_clipping", "measure_reference"):
        assert not any(bounded)
        assert not projected
    elif name == "condition_only":
        assert projected
        assert not any(bounded)
    elif name == "modulation_only":
        assert all(bounded)
        assert not projected
    elif name == "bounds_at_sampling":
        modulation.eval()
        torch.nn.init.constant_(modulation.linear.bias, 100.0)
        condition = torch.zeros(1, modulation.linear.in_features)
        assert max(s.gate.abs().max().item() for s in modulation(condition)) <= 1
        modulation.train()
        assert max(s.gate.abs().max().item() for s in modulation(condition)) == 100
    else:
        assert name == "diagnostics"
        assert any(isinstance(callback, GradientDiagnostics) for callback in cli.trainer.callbacks)
        assert (tmp_path / "run" / "diagnostics.json").exists()
    if name == "partitioned_clipping":
        # Its patterns are written for one net: they must be exactly what that net declares.
        function = cli.config_init["fit"].privacy.clipping_function
        assert isinstance(function, PerGroup)
        names = [parameter for parameter, _ in cli.model.named_parameters()]
        groups = dict(zip(names, function.partition(names), strict=True))
        assert {n for n, group in groups.items() if group == 0} == condition_parameters(cli.model)
    if name == "measure_reference":
        assert (tmp_path / "run" / "conditioning_reference.yaml").exists()


def test_a_bound_switched_off_stays_off_in_the_run_s_own_config(tmp_path):
    """null is no default here: a configuration that leaves it out would switch the bound on again."""
    _fit("condition_only", tmp_path / "run")
    again = tmp_path / "run" / "config.yaml"
    options = ["--run.test=false", "--run.wandb=disabled"]
    cli = run(["fit", f"--config={again}", f"--run.dir={tmp_path / 'again'}", *options])
    assert not hasattr(cli.model.net.blocks[0].modulation.scale_bound, "limit")


def test_public_first_private_last(tmp_path):
    """Pretrained on other households without privacy, then few parameters privately."""
    _fit("measure_reference", tmp_path / "public", "--data.init_args.seed=1", "--privacy=null")
    start = {
        "trainer": {
            "callbacks+": [
                {
                    "class_path": "lightning_dp.callbacks.weights_origin.WeightsOrigin",
                    "init_args": {"start_from": str(tmp_path / "public")},
                }
            ]
        },
        "model": {
            "init_args": {
                "adapter": {"class_path": "lightning_dp.adapters.lora.LoRA", "init_args": {"rank": 2}}
            }
        },
    }
    (tmp_path / "start.yaml").write_text(yaml.safe_dump(start))
    cli = _fit("vanilla", tmp_path / "private", f"--config={tmp_path / 'start.yaml'}", *SIGMA)
    public = torch.load(tmp_path / "public" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    qkv = cli.model.net.blocks[0].attention.qkv
    assert torch.equal(qkv.base_layer.weight, public["net.blocks.0.attention.qkv.weight"])
    assert qkv.lora_B["q"].weight.abs().sum() > 0  # noise alone moves it
    assert cli.model.facts()["adapter"] == "LoRA"
    config = tmp_path / "private" / "config.yaml"
    assert main(["test", f"--config={config}", "--ckpt_path=last", "--trainer.limit_test_batches=1"]) == 0
