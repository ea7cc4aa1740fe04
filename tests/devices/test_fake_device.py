"""What else runs on a device: everything around a fit mixes no devices, and known faults are seen."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_device import fake_device
from images.image_support import CLASSES
from images.pipeline_support import write_ddpm, write_dit
from images.sd_support import write_checkpoint
from labels import on_gpu
from support import Records, Regression
from torch import nn
from toy_recipes import ROOT, toy

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.callbacks.gradient_diagnostics import GradientDiagnostics
from lightning_dp.cli import main
from lightning_dp.images.evolution.diffusers_api import DiffusersPipelineAPI
from lightning_dp.images.evolution.diffusion_api import DiffusionAPI
from lightning_dp.privacy.clipping import exact, unit_sums
from lightning_dp.privacy.clipping.observing import UnitNorms
from lightning_dp.privacy.draws import generators_put_back

EXPERIMENTS = ROOT / "conf" / "experiment"


# --- the fake itself ------------------------------------------------------------------------------------


def test_tensors_say_where_they_are():
    with fake_device() as seen:
        x = torch.zeros(3, device="cuda")
        net = copy.deepcopy(nn.Linear(3, 2).to(x.device))
        loss = net(x + torch.tensor(1.0)).sum()
        loss.backward()
        torch.optim.AdamW(net.parameters()).step()
        for there in (x, x[1:], x.new_tensor([1.0]), torch.rand_like(x), net.weight, net.weight.grad, loss):
            assert there.device == torch.device("cuda", 0)
        for here in (x.cpu(), x.to("cpu"), torch.ones(2), torch.from_numpy(np.ones(2))):
            assert here.device == torch.device("cpu")
        assert x.to("cuda") is x
    assert not seen.mixed
    assert not on_gpu(torch.zeros(2))
    assert x.device == torch.device("cpu")  # outside, they are what they are


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: torch.zeros(3).index_select(0, x.long()),
        lambda x: torch.zeros(3)[x.long()],
        lambda x: x.index_put((torch.tensor([0, 1]),), torch.ones(2)),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    ],
)
def test_a_mix_is_seen(mix):
    with fake_device() as seen:
        mix(torch.zeros(3, device="cuda"))
    assert seen.mixed


def test_what_a_gpu_refuses_raises():
    with fake_device():
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        with pytest.raises(RuntimeError, match="'cpu' device type for generator"):
            torch.randn(3, generator=torch.Generator("cuda"))
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(torch.ones(3).cuda())


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.equal(x, x.clone()),
    ],
)
def test_a_wait_is_seen(wait):
    with fake_device() as seen:
        wait(torch.zeros(3, device="cuda"))
    assert seen.syncs.total() == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_generators_of_other_devices_keep_their_secret_seeds(device):
    """Those that a step is tried under are put back, and only they are seeded."""
    with fake_device():
        for generator in torch.cuda.default_generators:
            generator.manual_seed(7)
        with generators_put_back(torch.device(device)):
            seeds = [generator.initial_seed() for generator in torch.cuda.default_generators]
            assert seeds == ([0, 7] if device == "cuda" else [7, 7])
        assert [generator.initial_seed() for generator in torch.cuda.default_generators] == [7, 7]


# --- the three crashes ----------------------------------------------------------------------------------


def _private_fit(folder: Path):
    from lightning.pytorch import Trainer

    privacy = DifferentialPrivacy(noise_multiplier=1.0, delta=1e-3, expected_batch_size=8, spot_check=0)
    with fake_device() as seen:
        Trainer(
            accelerator="gpu",
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[GradientDiagnostics(), privacy],
        ).fit(Regression(), datamodule=Records())
    return seen


def test_diagnostics_of_a_private_fit(tmp_path):
    assert not _private_fit(tmp_path).mixed


def test_weights_of_units_that_stay_on_the_host_are_seen(tmp_path, monkeypatch):
    def as_before(**fields):
        return UnitNorms(**{**fields, "weights": fields["weights"].cpu()})

    monkeypatch.setattr(unit_sums, "UnitNorms", as_before)
    mixed = _private_fit(tmp_path).mixed
    assert any("gradient_diagnostics.py" in place for _, place in mixed)


def test_a_newer_switch_of_tf32(tmp_path, monkeypatch):
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        assert not _private_fit(tmp_path / "now").mixed
        monkeypatch.setattr(
            exact, "products_reduced", lambda: torch.get_float32_matmul_precision() != "highest"
        )
        with pytest.raises(RuntimeError, match="legacy and new APIs"):
            _private_fit(tmp_path / "before")
    finally:
        products.fp32_precision = before


@pytest.fixture(scope="module")
def public_run(tmp_path_factory) -> Path:
    """Weights that were trained on public images, on the device."""
    folder = tmp_path_factory.mktemp("public")
    config = toy(EXPERIMENTS / "fashion_mnist_public.yaml", folder)
    with fake_device() as seen:
        assert main(["fit", f"--config={config}", f"--run.dir={folder / 'run'}"]) == 0
    assert not seen.mixed
    return folder / "run"


def _evolve(folder: Path, public_run: Path):
    recipe = yaml.safe_load((ROOT / "conf" / "evolution" / "fashion_mnist.yaml").read_text())
    source = {"path": str(public_run.parent), "class_names": CLASSES}
    recipe["data"]["init_args"]["source"] = {
        "class_path": "lightning_dp.images.data.npz.NPZ",
        "init_args": source,
    }
    api = f"{DiffusionAPI.__module__}.{DiffusionAPI.__name__}"
    recipe["api"] = {"class_path": api, "init_args": {"run": str(public_run), "num_steps": 2}}
    recipe["generations"] = {"iterations": 1, "population": 6, "num_samples": 6}
    recipe["privacy"] = {"noise_multiplier": 1.0, "delta": 1e-3}
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with fake_device() as seen:
        assert main(["evolve", f"--config={path}", f"--run.dir={folder / 'run'}"]) == 0
    return seen


def test_evolution(tmp_path, public_run):
    assert not _evolve(tmp_path, public_run).mixed
    assert (tmp_path / "run" / "samples" / "train.npz").exists()


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_ddpm, {}),
        (write_dit, {"classes": [1, 2, 3]}),
        (write_checkpoint, {"prompts": ["a", "b", "c"]}),
    ],
    ids=["ddpm", "dit", "sd"],
)
def test_a_pipeline_folder_draws_and_varies_on_the_device(tmp_path, write, options):
    folder, labels = write(tmp_path / "pipeline"), np.arange(3)
    with fake_device() as seen:
        api = DiffusersPipelineAPI(str(folder), public="random numbers", num_steps=2, size=8, **options)
        samples = api.random(labels, rng=np.random.default_rng(0))
        varied = api.vary(samples, labels, degree=0.5, rng=np.random.default_rng(0))
        assert api.render(varied).shape == (3, 3, 8, 8)
    assert not seen.mixed


def test_an_evolution_on_the_host_is_seen(tmp_path, public_run, monkeypatch):
    def on_the_host(self, rng):
        return torch.Generator().manual_seed(int(rng.integers(2**63)))

    with monkeypatch.context() as patched:
        patched.setattr(DiffusionAPI, "_generator", on_the_host)
        with pytest.raises(RuntimeError, match="device type for generator"):
            _evolve(tmp_path / "draws", public_run)
    known = DiffusionAPI._known
    monkeypatch.setattr(DiffusionAPI, "_known", lambda self, labels: known(self, labels).cpu())
    assert _evolve(tmp_path / "labels", public_run).mixed


# --- around a fit ---------------------------------------------------------------------------------------


def test_series_with_secure_noise_and_diagnostics_resumed_tested_and_sampled(tmp_path):
    over = {"privacy.secure": True, "model.init_args.noise_draws": 1, "privacy.physical_batch_size": 4}
    config = toy(EXPERIMENTS / "demo_simulator.yaml", tmp_path, over=over)
    run = tmp_path / "run"
    controls = [f"--config={ROOT / 'conf' / name}.yaml" for name in ("controls/diagnostics",)]
    controls += [f"--config={ROOT / 'conf' / 'normaliser' / 'released_scale.yaml'}"]
    with fake_device() as seen:
        assert main(["fit", f"--config={config}", *controls, f"--run.dir={run}"]) == 0
        again = ["fit", f"--config={run / 'config.yaml'}", f"--run.dir={run}", "--ckpt_path=last"]
        assert main([*again, "--trainer.max_steps=2"]) == 0
        test = ["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]
        assert main([*test, f"--run.dir={tmp_path / 'test'}"]) == 0
        assert main(["sample", str(run), "--num=2", f"--output={tmp_path / 'windows.csv'}"]) == 0
    assert not seen.mixed
    assert json.loads((run / "diagnostics.json").read_text())["observed_steps"] >= 1
    assert (run / "plots").is_dir()


def test_images_with_private_saliency_evaluated_and_sampled(tmp_path):
    over = {"trainer.max_steps": 1}
    config = toy(EXPERIMENTS / "fashion_mnist.yaml", tmp_path, over=over)
    adapter = ROOT / "conf" / "adapter" / "saliency_lora.yaml"
    given = ["--model.init_args.adapter.init_args.noise_multiplier=3"]
    run = tmp_path / "run"
    with fake_device() as seen:
        assert main(["fit", f"--config={config}", f"--config={adapter}", *given, f"--run.dir={run}"]) == 0
        parts = ["--parts", "cnn", "memorisation", "--samples", "100", "--epochs", "1", "--steps", "2"]
        assert main(["evaluate", str(run), *parts]) == 0
        assert main(["sample", str(run), "--num=3", f"--output={tmp_path / 'pictures'}"]) == 0
    assert not seen.mixed
    assert "test/accuracy_cnn" in json.loads((run / "results.json").read_text())["metrics"]
