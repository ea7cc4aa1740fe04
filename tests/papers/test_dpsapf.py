"""The recipe, fragments and sweeps of DP-SAPF, each run end to end on a tiny checkpoint and made-up files."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from dpsapf_toy import TOY, write_dpsapf
from lightning.pytorch import LightningModule

from lightning_dp.cli import main
from lightning_dp.images.run import load_module
from lightning_dp.lightning_cli import Cli, run
from lightning_dp.sweeps.command import build_command, fit_arguments
from lightning_dp.sweeps.parameters import assemble
from lightning_dp.sweeps.sweep import read_sweep

# diffusers' own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
RECIPE = "conf/experiment/papers/dpsapf_sd15.yaml"
SWEEPS = {path.stem: path for path in sorted(ROOT.glob("sweeps/papers/dpsapf_*.yaml"))}
FRAGMENTS = {path.stem: path for path in sorted(ROOT.glob("conf/adapter/papers/*.yaml"))}
SMALL = [
    *TOY,
    "--trainer.max_steps=2",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--run.wandb=disabled",
]
GIVEN = ["--privacy.target_epsilon=null", "--privacy.noise_multiplier=4", "--privacy.expected_batch_size=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dpsapf(folder)
    return folder


@pytest.fixture(autouse=True)
def at_hand(data, monkeypatch) -> None:
    monkeypatch.setenv("LIGHTNING_DP_DATA", str(data))
    monkeypatch.setenv("STABLE_DIFFUSION", str(data / "tiny-sd"))
    monkeypatch.chdir(ROOT)


def _net(data: Path) -> str:
    return f"--model.init_args.net.init_args.path={data / 'tiny-sd'}"


def _report(folder: Path, name: str = "privacy.json") -> dict:
    return json.loads((folder / name).read_text())


# --- the recipe ----------------------------------------------------------------------------------------


def test_the_recipe_has_the_published_settings():
    recipe = yaml.safe_load((ROOT / RECIPE).read_text())
    model, privacy = recipe["model"]["init_args"], recipe["privacy"]
    adapter = model["adapter"]["init_args"]
    assert (privacy["expected_batch_size"], recipe["trainer"]["max_steps"]) == (4096, 1000)
    assert privacy["clipping_function"]["class_path"].endswith(".Automatic")
    assert privacy["max_grad_norm"] == adapter["score"]["init_args"]["max_norm"] == 1.0
    assert model["optimizer"] == {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 5e-4, "weight_decay": 1e-2},
    }
    assert (adapter["rank"], adapter["ratio"], adapter["noise_multiplier"]) == (4, 0.3, 5.0)
    assert adapter["score"]["class_path"].endswith(".Squared")
    assert adapter["max_units"] == 50_000
    assert model["label_dropout"] == 0
    assert (model["sampler"]["init_args"]["num_steps"], model["guidance_scale"]) == (25, 7.0)
    assert model["sampler"]["init_args"]["scheduler"]["class_path"] == "diffusers.PNDMScheduler"
    assert (recipe["data"]["init_args"]["size"], recipe["data"]["init_args"]["judged_size"]) == (256, 32)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The recipe with its own ε, calibrated, under the default engine, tested."""
    folder = tmp_path_factory.mktemp("dpsapf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_DP_DATA", str(data))
        patch.setenv("LIGHTNING_DP_LEDGER", str(folder / "ledger.sqlite"))
        patch.chdir(ROOT)
        own = [f"--config={RECIPE}", *SMALL, _net(data), "--privacy.expected_batch_size=8"]
        assert main(["fit", *own, f"--run.dir={folder / 'run'}"]) == 0
    return folder / "run"


def test_the_recipe_keeps_its_epsilon_and_its_delta(finished):
    report = _report(finished)
    assert 9.9 < report["epsilon"] <= 10
    assert report["delta"] == 1 / (40 * math.log(40))
    (prior,) = report["prior_releases"]
    assert (prior["noise_multiplier"], prior["sampling_rate"]) == (5.0, 1.0)
    saliency = _report(finished, "saliency.json")
    assert sum(matrix["chosen"] for matrix in saliency["matrices"]) == round(0.3 * 32)
    assert saliency["sensitivity"] == 1.0
    assert "test/loss" in _report(finished, "results.json")["metrics"]


def test_samples_are_judged_at_the_datas_own_size(finished, capsys):
    assert main(["evaluate", str(finished), "--samples", "100", "--epochs", "1", "--parts", "cnn"]) == 0
    results = _report(finished, "results.json")
    assert results["evaluation"]["size"] == 8
    assert 0 <= results["metrics"]["test/accuracy_cnn"] <= 100
    capsys.readouterr()
    assert main(["report", str(finished)]) == 0
    assert "DP-SAPF" in capsys.readouterr().out


# --- the public model as it is -------------------------------------------------------------------------


def test_the_public_model_is_sampled_and_evaluated_without_a_fit(data, tmp_path, ledger_path, capsys):
    run_folder = tmp_path / "zero_shot"
    assert main(["public", RECIPE, *TOY, _net(data), f"--run.dir={run_folder}"]) == 0
    assert "ε = 0" in capsys.readouterr().out
    assert _report(run_folder)["epsilon_spent"] == 0
    module = load_module(run_folder)
    noisy, timesteps, labels = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.tensor([0, 3])
    public = module.net.companions
    from lightning_dp.images.stable_diffusion import StableDiffusionUNet

    plain = StableDiffusionUNet(str(data / "tiny-sd"), class_names=module.net.class_names)
    plain.prompts.copy_(module.net.prompts)
    torch.testing.assert_close(
        module.net(noisy, timesteps, labels=labels), plain(noisy, timesteps, labels=labels)
    )
    assert public is not None
    out = tmp_path / "samples"
    assert main(["sample", str(run_folder), "--num", "10", "--output", str(out), "--seed", "1"]) == 0
    assert _report(out)["epsilon_spent"] == 0
    assert len(list((out / "train" / "cat").iterdir())) == 1
    assert main(["evaluate", str(run_folder), "--samples", "100", "--epochs", "1", "--parts", "cnn"]) == 0
    assert _report(run_folder, "results.json")["epsilon"] == 0
    assert not ledger_path.exists()


def test_a_report_of_no_training_covers_no_trained_weights(data, finished, tmp_path, capsys):
    run_folder = tmp_path / "zero_shot"
    assert main(["public", RECIPE, *TOY, _net(data), f"--run.dir={run_folder}"]) == 0
    (run_folder / "checkpoints" / "last.ckpt").write_bytes(
        (finished / "checkpoints" / "last.ckpt").read_bytes()
    )
    assert main(["sample", str(run_folder), "--num", "1", "--output", str(tmp_path / "out")]) == 2
    assert "doesn't cover them" in capsys.readouterr().err
    assert main(["public", RECIPE, *TOY, _net(data), f"--run.dir={run_folder}"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_net_with_random_weights_is_no_public_model(data, tmp_path, capsys):
    folder = tmp_path / "run"
    recipe = "conf/experiment/fashion_mnist_public.yaml"
    assert main(["public", recipe, "--model.init_args.base_denoiser=null", f"--run.dir={folder}"]) == 2
    assert "whose weights are random before a fit" in capsys.readouterr().err
    assert not folder.exists()
    assert main(["public", RECIPE, *TOY, _net(data)]) == 2
    assert "run.dir is missing" in capsys.readouterr().err


# --- variants ------------------------------------------------------------------------------------------


def _fit(arguments: list[str], folder: Path) -> Cli:
    return run([*arguments, f"--run.dir={folder}"])


def _trained(module: LightningModule) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


EXPECTED: dict[str, dict] = {
    "dplora": {"adapter": "LoRA", "lora_rank": 4},
    "dpsapf_random": {"saliency_score": "RandomScore", "chosen_matrices": 10},
    "dpsapf_layers": {"saliency_pieces": "layers", "chosen_matrices": 8},
    "dpsapf_noisy": {"saliency_unchosen": "random", "chosen_matrices": 10},
    "dpsapf_matrices": {"saliency_trains": "matrices", "chosen_matrices": 10},
    "dpsapf_all": {"saliency_trains": "matrices"},
    "dpsapf_exponential": {"saliency_choice": "Exponential", "chosen_matrices": 10},
    "dpsapf_propose_test_release": {"saliency_choice": "ProposeTestRelease"},
    "dpsapf_without_privacy": {"saliency_choice": "without noise, ε = ∞", "chosen_matrices": 10},
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_variant_trains_what_it_says_and_is_read_back(name, data, tmp_path, capsys):
    private = name != "dpsapf_without_privacy"
    own = [f"--config={RECIPE}", f"--config={FRAGMENTS[name]}", *SMALL, _net(data), "--run.test=false"]
    if not private:
        own = [one for one in own if "--privacy" not in one]
        own += ["--data.init_args.batch_size=10", "--trainer.accumulate_grad_batches=2"]
    else:
        own += GIVEN
    folder = tmp_path / "run"
    if name == "dpsapf_propose_test_release":  # of 40 images none stands out by as much as 25 of them
        with pytest.raises(ValueError, match="ProposeTestRelease chose nothing"):
            _fit(["fit", *own], folder)
        return
    cli = _fit(["fit", *own], folder)
    facts = cli.model.facts()
    assert EXPECTED[name].items() <= facts.items()
    assert cli.trainer.global_step == 2
    assert _report(folder)["epsilon_spent"] == "inf" if not private else _report(folder)["epsilon_spent"] < 20
    assert (folder / ("saliency.json" if private else "nonprivate/saliency.json")).exists() == (
        name != "dplora"
    )
    module = load_module(folder)
    for key, value in cli.model.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    if name == "dpsapf_all":
        kinds = {
            type(module.net.get_submodule(n.removeprefix("net.").rpartition(".")[0]))
            for n in _trained(cli.model)
        }
        assert torch.nn.Conv2d in kinds
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    left = [key for key in cli.model.state_dict() if key not in saved]
    assert any(key.startswith("autoencoder.") for key in left)
    if facts.get("saliency_trains") == "matrices":
        chosen = {f"net.{m['name']}.weight" for m in cli.model.adapter.selection.report() if m["chosen"]}
        assert {key for key in saved if key.endswith(".weight")} == chosen
    elif name != "dpsapf_noisy":
        assert all("lora_" in key for key in saved if key.endswith(".weight"))


def test_every_fragment_is_expected():
    """But that of the recipe itself, and that of the smallest budget below."""
    assert set(FRAGMENTS) == {*EXPECTED, "dpsapf", "dpsapf_share"}


# --- sweeps --------------------------------------------------------------------------------------------


def test_the_smallest_budget_holds_a_choice_that_is_a_share_of_it(tmp_path):
    """The first trial of that sweep; the last one of each runs in test_recipes.py."""
    sweep = read_sweep(SWEEPS["dpsapf_epsilon"])
    arguments = fit_arguments(build_command(sweep, assemble(next(sweep.points()))))
    assert arguments is not None
    assert "--privacy.target_epsilon=0.2" in arguments
    small = [*SMALL, "--privacy.expected_batch_size=8", "--run.test=false"]
    assert main([*arguments, *small, f"--run.dir={tmp_path / 'run'}"]) == 0
    assert 0.19 < _report(tmp_path / "run")["epsilon"] <= 0.2


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_varies_what_the_paper_does(name):
    sweep = read_sweep(SWEEPS[name])
    points = [assemble(point) for point in sweep.points()]
    (varied,) = {key for point in points for key in point} - {"seed_everything"}
    values = [point[varied] for point in points if point["seed_everything"] == 0]
    assert all((ROOT / value).is_file() for value in values if varied == "config")
    expected = {
        "dpsapf_ratio": [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        "dpsapf_epsilon": [0.2, 1, 5, 10, 15, 20],
        "dpsapf_sigma": [5, 10, 20, 25],
    }
    assert values == expected.get(name, values)
