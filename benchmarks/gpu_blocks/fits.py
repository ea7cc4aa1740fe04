"""Whole runs from the command line on the device, both halves; then fits under settings that once failed."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from gpu_blocks.setting import Setting, attempt
from gpu_blocks.small_fits import private_fit, write_pictures
from lightning_dp.callbacks.gradient_diagnostics import GradientDiagnostics

SECONDS = 90
_CONF = Path(__file__).parents[2] / "conf"
_SMALL = {"hidden_size": 16, "depth": 1, "num_heads": 2}


def run(setting: Setting) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=setting.folder) as name:
        folder = Path(name)
        series = _series(setting, folder)
        yield attempt("series: fit and test", lambda: _fit(series, folder / "series"))
        yield attempt("series: resume", lambda: _resume(folder / "series", steps=setting.of(60, 2)))
        out = f"--output={folder / 'windows.csv'}"
        yield attempt("series: sample", lambda: _command(["sample", str(folder / "series"), "--num=4", out]))
        public, private = (_images(setting, folder, public=public) for public in (True, False))
        yield attempt("images: public fit", lambda: _fit(public, folder / "public"))
        yield attempt("images: class Gaussians, private fit", lambda: _fit(private, folder / "images"))
        yield attempt("images: evaluate", lambda: _evaluate(setting, folder / "images"))
        yield attempt("images: evolution", lambda: _evolve(folder))
    for name, work in _settings(setting).items():
        yield attempt(name, work)


def _command(argv: list[str]) -> dict[str, Any]:
    from lightning_dp.cli import main

    if main(argv) != 0:
        raise RuntimeError(f"lightning-dp {argv[0]} failed: its message is on the console")
    return {}


def _fit(config: Path, run: Path) -> dict[str, Any]:
    _command(["fit", f"--config={config}", f"--run.dir={run}"])
    return _metrics(run)


def _metrics(run: Path) -> dict[str, Any]:
    path = run / "results.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    wanted = ("test/mse", "test/crps", "test/loss", "test/accuracy_cnn", "seconds/cnn", "seconds/sampling")
    return {name: value for name, value in found.get("metrics", {}).items() if name in wanted}


def _resume(run: Path, *, steps: int) -> dict[str, Any]:
    again = [f"--config={run / 'config.yaml'}", f"--run.dir={run}", "--ckpt_path=last"]
    _command(["fit", *again, f"--trainer.max_steps={steps}"])
    return _metrics(run)


def _trainer(setting: Setting, config: dict[str, Any], *, steps: int) -> None:
    config["trainer"] |= {"accelerator": "cpu" if setting.fake else "gpu", "max_steps": steps}
    config["trainer"] |= {"limit_test_batches": 2, "enable_progress_bar": False}
    for callback in config["trainer"].get("callbacks", []):
        if "start_from" in callback["init_args"]:
            callback["init_args"]["start_from"] = None
    config.setdefault("run", {})["wandb"] = "disabled"
    if config["privacy"] is not None:
        config["privacy"] |= {"target_epsilon": None, "noise_multiplier": 1.0, "delta": 1e-3}
        config["privacy"]["expected_batch_size"] = setting.of(64, 6)


def _series(setting: Setting, folder: Path) -> Path:
    config = yaml.safe_load((_CONF / "experiment" / "demo_simulator.yaml").read_text())
    config["data"]["init_args"] |= {"num_households": setting.of(1000, 20), "num_days": 30, "batch_size": 16}
    if setting.fake:
        config["model"]["init_args"] |= {"noise_draws": 1, "num_samples": 2}
        config["model"]["init_args"]["net"]["init_args"] |= _SMALL
    _trainer(setting, config, steps=setting.of(40, 1))
    path = folder / "series.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _images(setting: Setting, folder: Path, *, public: bool) -> Path:
    name = "fashion_mnist_public" if public else "fashion_mnist"
    config = yaml.safe_load((_CONF / "experiment" / f"{name}.yaml").read_text())
    pictures = folder / f"{name}_pictures"
    pictures.mkdir()
    names = write_pictures(pictures, train=setting.of(3000, 24), test=setting.of(300, 6))
    source = {"path": str(pictures), "class_names": names}
    config["data"]["init_args"]["source"] = {
        "class_path": "lightning_dp.images.data.npz.NPZ",
        "init_args": source,
    }
    config["data"]["init_args"] |= {"public": public, "batch_size": setting.of(64, 6)}
    config["model"]["init_args"]["base_denoiser"]["init_args"] = {
        "rank": 2,
        "noise_multiplier": None if public else 4.0,
    }
    if setting.fake:
        config["model"]["init_args"]["net"]["init_args"] |= _SMALL
    _trainer(setting, config, steps=setting.of(40, 1))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _evaluate(setting: Setting, run: Path) -> dict[str, Any]:
    size = ["--samples", str(setting.of(2000, 100)), "--epochs", str(setting.of(3, 1)), "--steps", "2"]
    _command(["evaluate", str(run), "--parts", "cnn", *size])
    return _metrics(run)


def _evolve(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((_CONF / "evolution" / "fashion_mnist.yaml").read_text())
    config["data"] = yaml.safe_load((folder / "fashion_mnist.yaml").read_text())["data"]
    api = "lightning_dp.images.evolution.diffusion_api.DiffusionAPI"
    config["api"] = {"class_path": api, "init_args": {"run": str(folder / "public"), "num_steps": 4}}
    config["generations"] = {"iterations": 2, "population": 12, "num_samples": 12}
    config["privacy"] = {"noise_multiplier": 1.0, "delta": 1e-3}
    path = folder / "evolution.yaml"
    path.write_text(yaml.safe_dump(config))
    return _command(["evolve", f"--config={path}", f"--run.dir={folder / 'evolution'}"])


def _settings(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Fits of the series under settings that touch the device's arithmetic."""

    def fit(**options: Any) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            trainer = private_fit(setting, "series", folder=folder, steps=2, **options)
        return {"steps": trainer.global_step}

    def newer_switch() -> dict[str, Any]:
        products: Any = torch.backends.cuda.matmul
        before = products.fp32_precision
        products.fp32_precision = "tf32"
        try:
            return fit()
        finally:
            products.fp32_precision = before

    return {
        "gradient diagnostics": lambda: fit(callbacks=[GradientDiagnostics()]),
        "TF32 by the newer switch": newer_switch,
        "secure noise": lambda: fit(privacy={"secure": True}),
        "bf16-mixed": lambda: fit(precision="bf16-mixed"),
        "benchmark": lambda: fit(benchmark=True),
        "deterministic": lambda: fit(deterministic=True),
    }
