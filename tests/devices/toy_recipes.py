"""Every shipped recipe at a size that trains in a second: its own parts, over few and made-up rows.

Data sets of files become simulated households or drawn pictures with the same shapes, nets shrink, noise is
given rather than calibrated, and no earlier stage is asked for.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from images.image_support import CLASSES, pictures
from images.sd_support import write_checkpoint

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
_NET = {"hidden_size": 16, "depth": 1, "num_heads": 2}


def toy(recipe: Path, folder: Path, *, over: dict[str, Any] | None = None) -> Path:
    """The recipe's small sister, written into a folder.

    Args:
        over: values to lay over it, by dotted keys.
    """
    config = yaml.safe_load(recipe.read_text())
    images = "Image" in config["data"]["class_path"]
    (_toy_images if images else _toy_series)(config, folder, text="stable_diffusion" in recipe.stem)
    if config["privacy"] is not None:
        config["privacy"] |= {"target_epsilon": None, "noise_multiplier": 4.0, "delta": 1e-2}
        # A second look costs as much as the step; two recipes and test_fake_device.py have it.
        looked_at = recipe.stem in ("demo_simulator", "fashion_mnist")
        config["privacy"] |= {"expected_batch_size": 6, "spot_check": 100 if looked_at else 0}
        if "physical_batch_size" in config["privacy"]:
            config["privacy"]["physical_batch_size"] = 3
    trainer = config["trainer"]
    for callback in trainer.get("callbacks", []):
        if "start_from" in callback.get("init_args", {}):
            callback["init_args"]["start_from"] = None
    # Half precision is nothing that a CPU's operators could pretend.
    trainer |= {"accelerator": "gpu", "precision": "32-true", "max_steps": 1, "log_every_n_steps": 1}
    trainer |= {"limit_test_batches": 1, "limit_val_batches": 1, "val_check_interval": 1}
    config.setdefault("run", {})["wandb"] = "disabled"
    for key, value in (over or {}).items():
        *path, last = key.split(".")
        inner = config
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = value
    path = folder / recipe.name
    path.write_text(yaml.safe_dump(config))
    return path


def _toy_series(config: dict[str, Any], folder: Path, *, text: bool) -> None:
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    kind = config["data"]["class_path"].rsplit(".", 1)[-1]
    days = 4
    if kind == "SmartMeter":
        days = data.pop("context_days")
        data |= {"steps_per_day": 48, "context_length": 48 * days, "horizon": 48, "with_temperature": False}
        data.pop("train_stride", None)
    if kind == "ETT":
        data.pop("name")
    config["data"]["class_path"] = "lightning_dp.timeseries.data.simulator.HouseholdLoad"
    data |= {"num_households": 20, "num_days": 3 * (days + 2) + 6, "batch_size": 6, "windows_per_user": 2}
    model |= {"num_samples": 2}
    model["net"]["init_args"] |= _NET
    model["sampler"] = {
        "class_path": "lightning_dp.diffusion.sampler.Sampler",
        "init_args": {"num_steps": 2},
    }


def _toy_images(config: dict[str, Any], folder: Path, *, text: bool) -> None:
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    size = data["size"] = 16 if text else data["size"]
    for split, count in (("train", 18), ("test", 6)):
        grey, labels = pictures(count, size=size)
        images = np.stack([grey, grey // 2, 255 - grey], axis=-1) if text else grey
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    source = {"path": str(folder), "class_names": CLASSES}
    data["source"] = {"class_path": "lightning_dp.images.data.npz.NPZ", "init_args": source}
    data["batch_size"] = 6
    data["public"] = config["privacy"] is None  # as the sets are that such recipes train on
    if "autoencoder" in model:
        model["autoencoder"]["init_args"]["widths"] = [4, 8]
    elif text:
        checkpoint = write_checkpoint(folder / "tiny-sd")
        model["net"]["init_args"] |= {"path": str(checkpoint), "size": 8, "class_names": CLASSES}
        model["adapter"]["init_args"]["rank"] = 2
    else:
        model["net"]["init_args"] |= _NET
    if "base_denoiser" in model:
        given = {"rank": 2, "noise_multiplier": 4.0 if config["privacy"] else None}
        model["base_denoiser"]["init_args"] = given
    if "net" in model:
        model["sampler"] = {
            "class_path": "lightning_dp.diffusion.sampler.Sampler",
            "init_args": {"num_steps": 2},
        }
