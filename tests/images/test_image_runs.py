"""From a fit on the command line to samples on disk and metrics in results.json."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from image_support import CLASSES, write_npz

from lightning_dp.cli import main
from lightning_dp.images.data.image_folder import ImageFolder
from lightning_dp.images.data.npz import NPZ
from lightning_dp.images.export import balanced_labels, export_images, sample_run
from lightning_dp.images.run import load_data, load_module


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short private run, as a user makes one."""
    folder = tmp_path_factory.mktemp("images")
    config = {
        "seed_everything": 0,
        "data": {
            "class_path": "lightning_dp.images.data.image_data.ImageData",
            "init_args": {
                "source": {
                    "class_path": "lightning_dp.images.data.npz.NPZ",
                    "init_args": {"path": str(write_npz(folder / "mine")), "class_names": CLASSES},
                },
                "size": 8,
            },
        },
        "model": {
            "class_path": "lightning_dp.images.module.LatentDiffusion",
            "init_args": {
                "net": {
                    "class_path": "lightning_dp.nets.image_dit.ImageDiT",
                    "init_args": {
                        "conditioning": {"class_path": "lightning_dp.nets.conditioning.adaln_zero.AdaLNZero"},
                        "in_channels": 2,
                        "num_classes": len(CLASSES),
                        "size": 4,
                        "patch_size": 2,
                        "hidden_size": 16,
                        "depth": 1,
                        "num_heads": 2,
                    },
                },
                "autoencoder": {
                    "class_path": "lightning_dp.images.autoencoder.SmallAutoencoder",
                    "init_args": {"image_size": 8, "num_channels": 2, "latent_size": 4, "widths": [4]},
                },
                "guidance_scale": 1.5,
            },
        },
        "privacy": {"noise_multiplier": 4.0, "delta": 1e-3, "expected_batch_size": 12},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "limit_val_batches": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        },
        "run": {"wandb": "disabled", "dir": str(folder / "run")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    monkey = pytest.MonkeyPatch()
    monkey.setenv("LIGHTNING_DP_LEDGER", str(folder / "ledger.sqlite"))
    try:
        assert main(["fit", f"--config={folder / 'recipe.yaml'}"]) == 0
    finally:
        monkey.undo()
    return folder / "run"


def test_a_fit_leaves_a_picture_and_facts(run):
    assert (run / "plots" / "sample_grid.png").stat().st_size > 1000
    results = json.loads((run / "results.json").read_text())
    assert results["dataset"] == "mine"
    assert results["unit"] == "record"
    assert results["metrics"]["test/loss"] > 0


def test_a_run_is_complete_by_itself(run, tmp_path):
    """An earlier stage's file may be gone: its weights are in the checkpoint."""
    import shutil

    import torch

    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    checkpoint = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=False)
    checkpoint["hyper_parameters"]["autoencoder"]["init_args"]["weights"] = "gone/ae.ckpt"
    torch.save(checkpoint, moved / "checkpoints" / "last.ckpt")
    module = load_module(moved)
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(module.state_dict()[name], value)
    assert load_data(moved).class_names == tuple(CLASSES)
    with pytest.raises(ValueError, match="is no run folder"):
        load_module(tmp_path)


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_samples_come_back_as_they_were_written(run, tmp_path, file_format):
    out = sample_run(run, num_samples=7, out=tmp_path / "out", file_format=file_format, seed=3)
    again = sample_run(run, num_samples=7, out=tmp_path / "again", file_format="npz", seed=3)
    expected = NPZ(str(again), class_names=CLASSES).open("train")
    source = ImageFolder(str(out)) if file_format == "png" else NPZ(str(out), class_names=CLASSES)
    table = source.open("train")
    assert table.class_names == tuple(CLASSES)
    for name in range(len(CLASSES)):
        mine = [np.asarray(table.read(i)) for i in np.flatnonzero(table.labels == name)]
        theirs = [np.asarray(expected.read(i)) for i in np.flatnonzero(expected.labels == name)]
        assert len(mine) == (3 if name == 0 else 2)
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert json.loads((out / "privacy.json").read_text())["epsilon_spent"] < 8
    assert json.loads((out / "about.json").read_text())["guidance"] == 1.5
    with pytest.raises(ValueError, match="is not an empty folder"):
        sample_run(run, num_samples=7, out=out)


def test_another_number_of_steps(run, tmp_path):
    images = {}
    for steps in (2, 20):
        options = {"num_samples": 3, "file_format": "npz", "seed": 3}
        out = sample_run(run, out=tmp_path / str(steps), num_steps=steps, **options)
        assert json.loads((out / "about.json").read_text())["num_steps"] == steps
        table = NPZ(str(out), class_names=CLASSES).open("train")
        images[steps] = np.stack([np.asarray(table.read(i)) for i in range(3)])
    assert not np.array_equal(images[2], images[20])
    with pytest.raises(ValueError, match="num_steps is 0, but sampling takes at least one"):
        load_module(run, num_steps=0)


def test_colour_images_survive_too(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    labels = np.array([0, -1, 0])
    for file_format in ("png", "npz"):
        out = export_images(
            images, labels=labels, class_names=["a/b"], out=tmp_path / file_format, file_format=file_format
        )
        source = ImageFolder(str(out)) if file_format == "png" else NPZ(str(out))
        table = source.open("train")
        order = [0, 2, 1] if file_format == "png" else [0, 1, 2]  # folders in alphabetical order
        for row, index in enumerate(order):
            assert np.array_equal(np.asarray(table.read(row)).transpose(2, 0, 1), images[index])


def test_labels_of_samples_are_balanced_whatever_the_data_is():
    assert np.bincount(balanced_labels(11, num_classes=3).numpy()).tolist() == [4, 4, 3]
    assert balanced_labels(2, num_classes=0).tolist() == [-1, -1]


def test_evaluate_adds_metrics_to_the_results(run, capsys):
    arguments = ["evaluate", str(run), "--samples", "120", "--epochs", "1", "--parts", "cnn", "memorisation"]
    assert main(arguments) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["metrics"]["test/loss"] > 0  # what was there stays
    assert 0 <= results["metrics"]["test/accuracy_cnn"] <= 100
    assert "nonprivate/copies" in results["metrics"]
    assert results["evaluation"]["compared_with"] == "the test split of mine"
    assert "test/accuracy_cnn" in capsys.readouterr().out
    assert main(["evaluate", str(run.parent)]) == 2
    assert "is no run folder" in capsys.readouterr().err
