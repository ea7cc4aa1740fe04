"""Run folders of earlier versions, and of subclasses, are served as those of today are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from own_modules import MyImages, MySeries
from torch import Tensor

import lightning_dp
from lightning_dp.adapters.public_start import load_weights
from lightning_dp.callbacks import WeightsOrigin
from lightning_dp.cli import main
from lightning_dp.privacy.report import write_privacy_report
from lightning_dp.tracking.layout import CHECKPOINT

EARLIER = Path(__file__).parent / "earlier"
OLD_NAMES = pytest.mark.filterwarnings("ignore:.* is called .* now:DeprecationWarning")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def run_folder(folder: Path, kind: str, *, model: str | None = None) -> tuple[Path, dict[str, Tensor]]:
    """A run folder as version 0.1 left it, with weights of the names and shapes that it had."""
    was: dict[str, Any] = yaml.safe_load((EARLIER / f"{kind}.yaml").read_text())
    if model is not None:
        was["config"]["model"]["class_path"] = was["hyper_parameters"]["_class_path"] = model
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in was["state_dict"].items()}
    for name in ("prior.variances", "prior.rest"):
        if name in state:
            state[name] = state[name].abs()
    (folder / CHECKPOINT).parent.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(was["config"]))
    torch.save({"state_dict": state, "hyper_parameters": was["hyper_parameters"]}, folder / CHECKPOINT)
    write_privacy_report(folder, {"epsilon": float("inf"), "epsilon_spent": float("inf")})
    return folder, state


@OLD_NAMES
def test_images_of_an_earlier_version(tmp_path):
    folder, state = run_folder(tmp_path / "run", "image")
    run = lightning_dp.load_run(folder)
    with pytest.warns(DeprecationWarning, match="guidance is called guidance_scale now"):
        module = run.module
    assert run.epsilon == float("inf")
    assert module.guidance_scale == 2.0
    assert module.base_denoiser.rank == 24
    now = {name.replace("base_denoiser.", "prior."): value for name, value in module.state_dict().items()}
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name], value) for name, value in state.items())
    assert run.sample(torch.arange(3)).shape == (3, 1, 28, 28)


@OLD_NAMES
def test_series_of_an_earlier_version(tmp_path):
    run = lightning_dp.load_run(run_folder(tmp_path / "run", "series")[0])
    with pytest.warns(DeprecationWarning, match="ensemble is called base_denoiser now"):
        module = run.module
    assert (module.base_denoiser.steps_per_day, module.base_denoiser.bandwidth) == (48, 0.15)
    batch = run.data.synthetic_units(2)
    assert run.sample(batch, num_samples=2).shape == (2, 2, 384, 1)


@OLD_NAMES
def test_a_fit_starts_from_images_of_an_earlier_version(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(tmp_path / "ledger.sqlite"))
    folder, state = run_folder(tmp_path / "run", "image")
    module = lightning_dp.load_run(folder).module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="have besides prior"):
        load_weights(module, state)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    WeightsOrigin(start_from=str(folder)).setup(trainer, module, "fit")
    assert all(torch.equal(value, state[name]) for name, value in module.named_parameters())


@OLD_NAMES
def test_a_configuration_with_old_names(tmp_path):
    was = yaml.safe_load((EARLIER / "image.yaml").read_text())["config"]
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(was))
    from lightning_dp.lightning_cli import instantiate

    with pytest.warns(DeprecationWarning, match="prior is called base_denoiser now"):
        module = instantiate(["fit", f"--config={path}"]).model
    assert module.guidance_scale == 2.0
    assert module.base_denoiser.rank == 24
    with pytest.raises(ValueError, match="guidance_scale and guidance are both given"):
        instantiate(["fit", f"--config={path}", "--model.init_args.guidance_scale=3"])


@OLD_NAMES
@pytest.mark.parametrize("kind", ["image", "series"])
def test_subclasses_are_sampled_by_the_command(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("LIGHTNING_DP_TRUST", "0")  # put back after `--trust`
    mine = {"image": MyImages, "series": MySeries}[kind]
    folder, _ = run_folder(tmp_path / "run", kind, model=f"own_modules.{mine.__name__}")
    assert type(lightning_dp.load_run(folder, trust=True).module) is mine
    out = tmp_path / ("out" if kind == "image" else "out.csv")
    assert main(["sample", str(folder), "--num=2", "--steps=1", "--trust", f"--output={out}"]) == 0
    report = out / "privacy.json" if kind == "image" else tmp_path / "out.csv.privacy.json"
    assert "inf" in json.dumps(json.loads(report.read_text()))
